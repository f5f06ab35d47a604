"""What becomes of clients while no VM has the address of a forward.

For some seconds they wait, in the socket's queue, for a worker that is being replaced or a VM that reboots. After that
nobody can say when it will be: connections are reset and datagrams thrown away as they come, so that a client learns
it at once, and a VM that appears later finds no backlog of those who gave up long ago.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

PATIENCE = 10.0
"""s; what gvproxy's dial to a guest takes at most."""
QUANTUM = 64
"""Clients turned away in one go."""
RETRY = 1.0
"""s until another try when the process has no descriptor left to accept with."""

log = logging.getLogger(__name__)


class Unserved:
    """Turns the clients of a bound socket away from some seconds after `start` until `stop`, which may come twice."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watching = False

    def start(self) -> None:
        """Nobody serves the socket from now on."""
        if self._timer is None and not self._watching:
            self._timer = self._loop.call_later(PATIENCE, self._watch)

    def stop(self) -> None:
        """Somebody serves it, or it is about to be closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._sock)

    def _watch(self) -> None:
        self._timer = None
        self._watching = True
        self._loop.add_reader(self._sock, self._turn_away)

    def _turn_away(self) -> None:
        try:
            for _ in range(QUANTUM):
                if self._sock.type == socket.SOCK_DGRAM:
                    self._sock.recv(1)
                else:
                    _reset(self._sock.accept()[0])
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.warning("cannot turn clients away: %s", error)
            self.stop()
            self._timer = self._loop.call_later(RETRY, self._watch)


def _reset(client: socket.socket) -> None:
    """Close a connection by RST, that the client may know it from one that was served."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
