"""A VM's link as the supervisor holds it: the descriptors it keeps open while workers come and go. It never reads."""

from __future__ import annotations

import abc
import contextlib
import os
import select
import socket
from collections.abc import Sequence

HUNG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Link(abc.ABC):
    """Open until `close`."""

    @abc.abstractmethod
    def filenos(self) -> Sequence[int]:
        """What a worker gets: one descriptor to read and write, or one to read and one to write."""

    def is_closed(self) -> bool:
        """Whether the other end hung up. Frames that are still unread do not matter: nobody waits for an answer."""
        poll = select.poll()
        for fd in self.filenos():
            poll.register(fd, HUNG_UP)
        return bool(poll.poll(0))

    @abc.abstractmethod
    def close(self) -> None:
        """Tell the other end that it is over."""


class SocketLink(Link):
    """One connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def filenos(self) -> Sequence[int]:
        return (self.sock.fileno(),)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # a worker that is about to end holds a duplicate
        self.sock.close()


class PipeLink(Link):
    """Two pipes, or any two descriptors of streams: one to read, one to write."""

    def __init__(self, to_read: int, to_write: int) -> None:
        self._fds = [to_read, to_write]

    def filenos(self) -> Sequence[int]:
        return self._fds

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
