"""A TCP echo server in a thread, for any number of connections, in any network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Self

from tests.guests.namespace import Namespace

BACKLOG = 4096
"""Connections that wait to be accepted; Linux allows no more unless told so."""


class EchoServer:
    """Echoes until the other end is done, then closes. A context manager; its end closes what is still open."""

    def __init__(self, namespace: Namespace, address: str, port: int = 0, idle: float | None = None) -> None:
        """`idle`: seconds of silence after which a connection is closed."""
        with namespace.entered():
            self._listener = socket.create_server((address, port), backlog=BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._idle = idle
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self.connections = 0
        """Open now."""

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            try:
                with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                    await self._echo(reader, writer)
            finally:
                self.connections -= 1
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(take, sock=self._listener, backlog=BACKLOG)
        await self._stop.wait()
        server.close()
        for task in set(tasks):
            task.cancel()
        while tasks:
            await asyncio.sleep(0.01)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await asyncio.wait_for(reader.read(65536), self._idle):
            writer.write(data)
            await writer.drain()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()
