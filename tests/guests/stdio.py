"""A program for ``stdio:``: carries frames between its standard input and output and Moorage's QEMU socket.

``python -m tests.guests.stdio SOCKET``, where a hypervisor's own helper would stand.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from proto.framing import FrameReader, pack


def main(path: str) -> None:
    """Until either side ends."""
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.connect(path)
        threading.Thread(target=_to_guest, args=(gateway,), daemon=True).start()
        reader = FrameReader("stream16")
        while size := os.readv(0, [reader.space()]):
            gateway.sendall(b"".join(pack(bytes(frame)) for frame in reader.received(size)))


def _to_guest(gateway: socket.socket) -> None:
    reader = FrameReader()
    with open(1, "wb", closefd=False) as output:
        while size := gateway.recv_into(reader.space()):
            output.write(b"".join(pack(bytes(frame), "stream16") for frame in reader.received(size)))
            output.flush()
    os._exit(0)  # the gateway is gone: the guest must hear of it


if __name__ == "__main__":
    main(sys.argv[1])
