"""Connections that the API server hands over: ``handover.sock`` in the runtime directory.

A client connects, sends one message with one descriptor, and gets one answer: `Empty`, and the descriptor's connection
is the supervisor's, or `Failure`. What a message means is its handler's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from proto.codec import Message
from proto.errors import CodecError, RequestFailed
from proto.fdpass import FdChannel
from proto.messages import Empty, Failure
from supervisor.endpoints import BACKLOG, UnixEndpoint, bind_unix

ACCEPT_PAUSE = 1.0
"""s; when accept fails (no descriptors left), trying again at once would only spin."""
PATIENCE = 5.0
"""s for a client to send its message, and to take the answer."""

Handler = Callable[[Any, int], None]
"""Gets a message and its descriptor, which is closed afterwards. Raises RequestFailed."""

log = logging.getLogger(__name__)


class Handover:
    """Serves `handlers`, by message type, from now on. Raises StartError or OSError when the socket cannot be bound."""

    def __init__(self, path: Path, handlers: Mapping[type, Handler]) -> None:
        self._handlers = handlers
        self._sock = bind_unix(UnixEndpoint(str(path)), socket.SOCK_SEQPACKET)
        self._sock.listen(BACKLOG)
        self._sock.setblocking(False)
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._accept())

    async def close(self) -> None:
        """Take no more."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                log.error("cannot take a connection from the API server: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
            else:
                self._start(self._serve(FdChannel(sock)))

    async def _serve(self, channel: FdChannel) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                message, fds = await channel.arecv()
                try:
                    answer = self._answer(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
                await channel.asend(answer)
        except TimeoutError:
            log.warning("refused what the API server handed over: it was not done in %g s", PATIENCE)
        except (OSError, EOFError, CodecError) as error:
            log.warning("refused what the API server handed over: %s", error)
        finally:
            channel.close()

    def _answer(self, message: Message, fds: list[int]) -> Message:
        handler = self._handlers.get(type(message))
        if handler is None or len(fds) != 1:
            return Failure("bad-request", f"{type(message).__name__} with {len(fds)} descriptors is no handover")
        try:
            handler(message, fds[0])
        except RequestFailed as error:
            return error.failure
        return Empty()
