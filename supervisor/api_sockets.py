"""The API server's sockets, as gunicorn is given them: of whatever family, and with clients that cannot keep a thread.

gunicorn has a thread for each request from its first byte on. A client that sends a part of one, or does not take its
answer, would have it for ever, and a handful of them the whole API.
"""

from __future__ import annotations

import errno
import socket
import time
from typing import Any

PATIENCE = 10.0
"""s for a request to arrive, and for its answer to be taken; gvproxy's."""
LINGER = 0.05
"""s for what a client still sends, so that its answer is not lost to a reset."""


class ListeningSocket(socket.socket):
    """What gunicorn's workers accept from, of whatever family: of addresses it knows a unix socket's and TCP's."""

    def accept(self) -> tuple[Client, Any]:
        """A connection, and its address in a form that gunicorn knows."""
        sock, address = super().accept()
        return Client(fileno=sock.detach()), self._known(address)

    def getsockname(self) -> Any:
        """Likewise."""
        return self._known(super().getsockname())

    def _known(self, address: Any) -> Any:
        return address if self.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) else ""


class Client(socket.socket):
    """A connection. gunicorn makes it blocking before each request; what that request may take counts from there."""

    _until = 0.0

    def setblocking(self, flag: bool) -> None:
        """Blocking: for as long as a request may take to arrive."""
        self._until = time.monotonic() + PATIENCE
        self.settimeout(PATIENCE if flag else 0.0)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """A client that is too slow is one that has gone, about which gunicorn makes no fuss."""
        left = max(self._until - time.monotonic(), 0.001)
        timeout = self.gettimeout()
        if timeout is None or timeout > left:
            self.settimeout(left)
        try:
            return super().recv(bufsize, flags)
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the request does not arrive") from error

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Likewise."""
        if self.gettimeout() != 0.0:
            self.settimeout(PATIENCE)
        try:
            super().sendall(data, flags)
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the answer is not taken") from error

    def shutdown(self, how: int) -> None:
        """gunicorn is done with it, and would wait for the client to hang up, before it accepts anybody else."""
        self._until = time.monotonic() + LINGER
        super().shutdown(how)
