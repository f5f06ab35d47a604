"""Listeners whose VMs say something before their first frame.

Each handshake is a task of its own with a deadline; only its end makes a VM, so that whoever says nothing, or something
else, costs a descriptor for some seconds and at most a line in the log (`complaints`). Not a byte behind the handshake
is read: those are frames, and the worker's.
"""

from __future__ import annotations

import abc
import asyncio
import re
import socket

from proto.messages import Framing
from supervisor.attach.link import SocketLink
from supervisor.attach.listener import Attachment, Host, StreamListener
from supervisor.attach.options import NO_OPTIONS, Options
from supervisor.endpoints import Endpoint
from supervisor.limits import open_files

HANDSHAKE_TIMEOUT = 5.0
MAX_HANDSHAKES = 1024
"""On one listener at a time, or an eighth of what descriptors there may be. When another comes, the oldest has had its
chance."""


class HandshakeError(Exception):
    """What the VM did wrong, as one sentence."""


class GreetingListener(StreamListener):
    """Lets a connection attach once its handshake is through."""

    def __init__(self, endpoint: Endpoint, options: Options = NO_OPTIONS) -> None:
        super().__init__(endpoint, options)
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """Under way, the oldest first."""
        self._most = min(MAX_HANDSHAKES, open_files() // 8)

    def close(self) -> None:
        super().close()
        for task in self._handshakes:
            task.cancel()

    @abc.abstractmethod
    async def _shake_hands(self, sock: socket.socket, host: Host) -> Framing:
        """Say and hear what comes before the first frame; how the frames lie on the link.

        Raises HandshakeError, EOFError or OSError where nothing comes of it.
        """

    def _welcome(self, sock: socket.socket, peer: str, host: Host) -> None:
        if len(self._handshakes) >= self._most:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel(f"{self._most} others came after it")
        task = asyncio.get_running_loop().create_task(self._greet(sock, peer, host))
        self._handshakes[task] = None
        task.add_done_callback(lambda done: self._end(done, sock))

    def _end(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._handshakes.pop(task, None)
        if task.cancelled():  # perhaps before its first step
            sock.close()

    async def _greet(self, sock: socket.socket, peer: str, host: Host) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                framing = await self._shake_hands(sock, host)
        except TimeoutError:
            reason = f"its handshake was not through after {HANDSHAKE_TIMEOUT:g} s"
        except EOFError:
            reason = "it hung up during the handshake"
        except (HandshakeError, OSError) as error:
            reason = str(error)
        except asyncio.CancelledError as error:
            if not error.args:
                raise
            reason = str(error)
        else:
            return host.attach(Attachment(SocketLink(sock), self.kind, framing, str(self.endpoint), peer))
        sock.close()
        self._complaints.add(f"dropped a connection to {self.endpoint} ({peer}): {reason}")


async def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """That many bytes. Raises EOFError when the other end hangs up before."""
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < size:
        data = await loop.sock_recv(sock, size - len(received))
        if not data:
            raise EOFError
        received += data
    return received


async def receive_through(sock: socket.socket, end: re.Pattern[bytes], limit: int, begun: bytes = b"") -> bytes:
    """`begun` and what comes up to and with the first match of `end`, and no byte more.

    Raises HandshakeError when it is not among the first `limit` bytes, EOFError when the other end hangs up before.
    """
    received = begun
    while len(received) < limit:
        await _readable(sock)
        try:
            seen = sock.recv(limit - len(received), socket.MSG_PEEK)
        except BlockingIOError:
            continue
        if not seen:
            raise EOFError
        found = end.search(received + seen)
        # Without the end in sight all of it is ours to take, and taking it is what lets us wait for more.
        received += sock.recv(found.end() - len(received) if found else len(seen))
        if found and len(received) == found.end():
            return received
    raise HandshakeError(f"more than {limit} bytes came where fewer were expected")


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)
