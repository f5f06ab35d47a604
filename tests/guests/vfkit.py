"""What vfkit does between a VM's card and Moorage's socket: frames as unix datagrams, ``VFKT`` before the first.

The card is a stream of frames here, as the agent of a namespace guest has it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Self

from proto.framing import FrameReader, pack

MAGIC = b"VFKT"
SEND_BUFFER, RECEIVE_BUFFER = 1 << 20, 4 << 20


def vfkit_socket(path: Path, local: Path) -> socket.socket:
    """A socket with a name of its own, connected to the listener's `path`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(local))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.connect(str(path))
    return sock


class Vfkit:
    """One VM's process; `card` is where its card connects, once. It ends with the card's connection."""

    def __init__(self, path: Path, card: Path) -> None:
        """Connect; nothing is said before `start`."""
        self.card = card
        self._local = card.with_suffix(".vfkit")
        self._link = vfkit_socket(path, self._local)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(card))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run)

    def start(self) -> Self:
        """Say ``VFKT``, then carry frames."""
        self._link.send(MAGIC)
        self._thread.start()
        return self

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            stream, _ = self._listener.accept()
            down = threading.Thread(target=self._to_card, args=(stream,))
            down.start()
            with contextlib.suppress(OSError), stream:
                self._from_card(stream)
            self._hang_up()
            down.join()

    def _from_card(self, stream: socket.socket) -> None:
        reader = FrameReader()
        while size := stream.recv_into(reader.space()):
            for frame in reader.received(size):
                self._link.send(frame)

    def _to_card(self, stream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while frame := self._link.recv(65_550):
                stream.sendall(pack(frame))

    def _hang_up(self) -> None:
        """As a process that ends does: nothing is said."""
        for sock in (self._listener, self._link):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the threads
            sock.close()

    def close(self) -> None:
        self._hang_up()
        self._thread.join(10)
        for path in (self._local, self.card):
            path.unlink(missing_ok=True)
