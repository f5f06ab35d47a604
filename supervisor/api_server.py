"""The API server's life: gunicorn as a child, on sockets that are bound here, started again when it dies.

While no gunicorn runs, connections wait in the backlog of the sockets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path

from supervisor.children import Backoff, end, python, start, status_in_words
from supervisor.endpoints import (
    UNIXPACKET_SCHEME,
    StreamEndpoint,
    UnixEndpoint,
    bound_endpoint,
    listen,
    unlink_endpoint,
)
from supervisor.packet_relay import PacketRelay

log = logging.getLogger(__name__)


class ApiServer:
    """gunicorn on some endpoints; `runtime` is for sockets of its own. Raises StartError when one cannot be bound."""

    def __init__(self, endpoints: Sequence[StreamEndpoint], runtime: Path, env: Mapping[str, str]) -> None:
        self._env = env
        self._sockets: list[socket.socket] = []
        self._relays: list[PacketRelay] = []
        try:
            for endpoint in endpoints:
                self._sockets.append(self._listen(endpoint, runtime))
        except Exception:
            self.close()
            raise
        self.endpoints = tuple(bound_endpoint(sock) for sock in self._sockets)
        """Where it in fact listens; behind a relay, where that one finds it."""
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the server and keep it alive from now on."""
        self._process = await self._launch()
        self._task = asyncio.get_running_loop().create_task(self._keep())
        for relay in self._relays:
            relay.start()

    async def stop(self, patience: float) -> None:
        """End the server; requests under way are answered first, for as long as `patience` seconds."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None:
            await end(self._process, patience)
        for relay in self._relays:
            await relay.stop()

    def close(self) -> None:
        """Close the sockets and unlink their files."""
        for sock in self._sockets:
            endpoint = bound_endpoint(sock)
            sock.close()
            unlink_endpoint(endpoint)
        for relay in self._relays:
            relay.close()
        self._sockets, self._relays = [], []

    def _listen(self, endpoint: StreamEndpoint, runtime: Path) -> socket.socket:
        if not (isinstance(endpoint, UnixEndpoint) and endpoint.scheme == UNIXPACKET_SCHEME):
            return listen(endpoint)
        behind = UnixEndpoint(str(runtime / f"packets{len(self._relays)}.sock"))
        self._relays.append(PacketRelay(endpoint, behind))
        return listen(behind)

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            started = time.monotonic()
            status = await self._process.wait() if self._process is not None else None
            delay = backoff.delay(time.monotonic() - started)
            log.error("the API server ended (%s); starting another in %g s", status_in_words(status), delay)
            await asyncio.sleep(delay)
            try:
                self._process = await self._launch()
            except OSError as error:
                self._process = None
                log.error("the API server cannot be started: %s", error)

    async def _launch(self) -> Process:
        fds = [sock.fileno() for sock in self._sockets]
        env = {
            **os.environ,
            **self._env,
            "GUNICORN_PID": str(os.getpid()),
            "MOORAGE_API_SOCKETS": ",".join(map(str, fds)),
        }
        return await start([*python("gunicorn"), "-c", "python:supervisor.gunicorn_settings"], fds, env)
