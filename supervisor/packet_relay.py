"""The API on a unix SEQPACKET socket, gvproxy's ``unixpacket://``.

gunicorn serves streams alone, so each connection is carried to one of its stream sockets and back: what the packets
hold, in their order, is the stream. Towards the client go packets of at most 4096 bytes, as much as Go's clients read
at a time: of a longer one they would lose the rest. A packet without a byte cannot be told from the end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Coroutine
from typing import Any

from supervisor.endpoints import UnixEndpoint, listen, unlink_endpoint

MAX_PACKET = 1 << 18
"""Bytes; more than Linux lets a socket send, unless net.core.wmem_max was raised."""
PIECE = 4096
MAX_CONNECTIONS = 256
"""At a time; others wait in the backlog."""
ACCEPT_PAUSE = 1.0
"""s; when accept fails (no descriptors left), trying again at once would only spin."""

log = logging.getLogger(__name__)


class PacketRelay:
    """Listens on `endpoint`, for a server that listens on `server`. Raises StartError when it cannot be bound."""

    def __init__(self, endpoint: UnixEndpoint, server: UnixEndpoint) -> None:
        self._endpoint = endpoint
        self._server = server
        self._sock = listen(endpoint, socket.SOCK_SEQPACKET)
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Take connections on the running loop from now on."""
        self._start(self._accept())

    async def stop(self) -> None:
        """End all of them, and take no more."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Close the socket and unlink its file."""
        self._sock.close()
        unlink_endpoint(self._endpoint)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            await self._room.acquire()
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(self._sock)
            except OSError as error:
                log.error("cannot accept on %s: %s", self._endpoint, error)
                self._room.release()
                await asyncio.sleep(ACCEPT_PAUSE)
            else:
                self._start(self._carry(client))

    async def _carry(self, client: socket.socket) -> None:
        try:
            with client, socket.socket(socket.AF_UNIX) as stream:
                stream.setblocking(False)
                await asyncio.get_running_loop().sock_connect(stream, self._server.path)
                async with asyncio.TaskGroup() as both:
                    both.create_task(_from_client(client, stream))
                    both.create_task(_to_client(stream, client))
        except* OSError as errors:
            log.debug("a connection to %s ended: %s", self._endpoint, errors.exceptions[0])
        finally:
            self._room.release()


async def _from_client(client: socket.socket, stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while packet := await loop.sock_recv(client, MAX_PACKET + 1):
        if len(packet) > MAX_PACKET:  # the rest of it is lost
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        await loop.sock_sendall(stream, packet)
    stream.shutdown(socket.SHUT_WR)


async def _to_client(stream: socket.socket, client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while piece := await loop.sock_recv(stream, PIECE):
        await loop.sock_sendall(client, piece)
    client.shutdown(socket.SHUT_WR)
