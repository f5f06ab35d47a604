"""``ssh -o ProxyCommand="python proxy_command.py SOCKET [IP PORT]"``: standard input and output to a unix socket, or to
``HOST:PORT``.

With IP and PORT it asks for gvproxy's ``/tunnel`` there first, as ssh-over-vsock does: a GET, then two bytes, ``OK``.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading


def connect(address: str) -> socket.socket:
    """To a path, or to host and port."""
    if "/" not in address:
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    return sock


def main(address: str, *guest: str) -> None:
    """Carry both directions until the server has said everything."""
    sock = connect(address)
    if guest:
        ip, port = guest
        sock.sendall(f"GET /tunnel?ip={ip}&port={port} HTTP/1.1\r\nHost: unix\r\n\r\n".encode())
        answer = sock.recv(2, socket.MSG_WAITALL)
        assert answer == b"OK", answer + sock.recv(1000)

    def send() -> None:
        with open(0, "rb", buffering=0) as source, sock.makefile("wb", buffering=0) as target:
            shutil.copyfileobj(source, target)
        sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    while data := sock.recv(1 << 16):
        os.write(1, data)


if __name__ == "__main__":
    main(*sys.argv[1:])
