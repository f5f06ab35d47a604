"""``/tunnel``: an HTTP connection that becomes a connection to a TCP port of a VM.

It begins with the two bytes ``OK``, as gvproxy's does: before the guest has been called, so that a guest that cannot be
reached, or refuses, is the connection's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from proto.messages import OpenTunnel
from supervisor.forwards.table import Forwards

log = logging.getLogger(__name__)


class Tunnels:
    """Opens them; `take` is a handler of what the API server hands over."""

    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards
        self._opening: set[asyncio.Task[None]] = set()

    def take(self, wanted: OpenTunnel, fd: int) -> None:
        """Join a connection, of which the caller keeps its descriptor, to a port of a VM."""
        task = asyncio.get_running_loop().create_task(self._open(wanted, os.dup(fd)))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, wanted: OpenTunnel, fd: int) -> None:
        try:
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # whoever asked is gone: the worker will notice
                os.write(fd, b"OK")
            if not await self._forwards.call(
                wanted.network, wanted.ip, wanted.port, fd, first_bytes=wanted.first_bytes
            ):
                log.info("no tunnel to %s:%d: no VM of network %s has it", wanted.ip, wanted.port, wanted.network)
        finally:
            os.close(fd)
