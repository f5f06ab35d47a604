"""Unix sockets of the host that are carried over SSH: here is the socket's life, and that of the process behind it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping

from proto.errors import CodecError
from proto.fdpass import FdChannel
from proto.ssh import CallSshServer, CarrySsh
from supervisor.children import Backoff, end, python, start, status_in_words

log = logging.getLogger(__name__)


class SshForward:
    """Serves a listening unix socket by a carrier process, which is started when the first client comes.

    `call` joins a descriptor to the SSH server's port. Whatever the carrier says, it gets nothing else.
    """

    def __init__(
        self, sock: socket.socket, destination: CarrySsh, env: Mapping[str, str], call: Callable[[int], Awaitable[bool]]
    ) -> None:
        self._sock = sock
        self._to = destination
        self._env = env
        self._call = call
        self._process: Process | None = None
        self._serving = asyncio.get_running_loop().create_task(self._serve())
        self._finishing: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Take no more clients; those that are served go on. The socket may be closed afterwards."""
        if self._finishing is None:
            asyncio.get_running_loop().remove_reader(
                self._sock
            )  # now: `_serving` ends when its number may be another's
            self._serving.cancel()
            self._finishing = asyncio.get_running_loop().create_task(self._finish())

    async def stop(self, patience: float) -> None:
        """End now."""
        self.close()
        if self._process is not None:
            await end(self._process, patience)
        if self._finishing is not None:
            await self._finishing

    async def finished(self) -> None:
        """Wait until the last client has been served, after `close`."""
        if self._finishing is not None:
            await self._finishing

    async def _finish(self) -> None:
        await asyncio.gather(self._serving, return_exceptions=True)
        if self._process is not None:
            await self._process.wait()

    async def _serve(self) -> None:
        backoff = Backoff()
        while True:
            await _readable(self._sock)
            started = time.monotonic()
            try:
                ending = status_in_words(await self._run())
            except OSError as error:
                ending = str(error)
            log.error("the SSH carrier of %s ended (%s)", self._sock.getsockname(), ending)
            await asyncio.sleep(backoff.delay(time.monotonic() - started))

    async def _run(self) -> int:
        """One carrier's life; its exit status."""
        ours, theirs = FdChannel.pair()
        try:
            command = [*python("supervisor.forwards.ssh_carrier"), str(theirs.fileno())]
            self._process = await start(command, [theirs.fileno()], {**os.environ, **self._env})
            theirs.close()
            await ours.asend(self._to, [self._sock.fileno()])
            await self._answer(ours)
            return await self._process.wait()
        finally:
            for end_of_channel in (ours, theirs):
                end_of_channel.close()

    async def _answer(self, channel: FdChannel) -> None:
        """Let the carrier reach its SSH server until it is gone."""
        while True:
            try:
                message, fds = await channel.arecv()
            except CodecError as error:
                log.warning("refused a message of an SSH carrier: %s", error)
                continue
            except (EOFError, OSError):
                return
            try:
                if isinstance(message, CallSshServer) and len(fds) == 1:
                    await self._call(fds[0])
            finally:
                for fd in fds:
                    os.close(fd)


async def _readable(sock: socket.socket) -> None:
    """Wait until a client comes."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        if sock.fileno() >= 0:
            loop.remove_reader(sock)
