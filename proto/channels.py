"""Requests, answers and events over ZeroMQ.

- `Requester` (DEALER) talks to one `Responder` (ROUTER); either may ask the other, and either may send a message that
  is not answered. Many requests can be under way; answers come in any order, matched by request id.
- `EventPublisher` and `EventSubscriber` (PUB, SUB) carry messages to whoever listens; a slow listener loses some.
- `BlockingRequester` is the requester for threads without a loop.

A DEALER sends one frame, the message (`proto/codec.py`); a ROUTER adds and strips the peer's identity::

    DEALER: [ message ]        ROUTER: [ identity | message ]

A message the codec refuses is counted (`refused`), logged and, where its request id could be read, answered with
`Failure` ``bad-request``. A handler answers a `Failure` by raising `RequestFailed`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from queue import Empty, SimpleQueue

import zmq
import zmq.asyncio

from proto import messages
from proto.codec import MAX_MESSAGE_SIZE, Message, decode, encode
from proto.errors import CodecError, RequestFailed, RequestTimeout
from proto.messages import Failure

REQUEST_TIMEOUT = 5.0
MAX_HANDLERS = 256
"""Handlers at work at once on one channel; beyond that its socket is not read, and ZeroMQ holds the peers back."""
LINGER = 200
"""ms; what is queued when a channel closes has this long to leave."""

log = logging.getLogger(__name__)

Handler = Callable[[Message], Awaitable[Message | None]]
PeerHandler = Callable[[bytes, Message], Awaitable[Message | None]]


class _Channel:
    """What both ends share: pending requests, handlers at work, and the task that reads."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._pending: dict[tuple[bytes, int], asyncio.Future[Message]] = {}
        self._ids = itertools.count(1)
        self._handlers: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_HANDLERS)
        self._reader: asyncio.Task[None] | None = None
        self.refused = 0
        """Messages received that the codec refused."""

    def start(self) -> None:
        """Begin to read, on the running loop."""
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def close(self) -> None:
        """Stop reading and handling; requests under way fail as ``unavailable``."""
        tasks = [task for task in (self._reader, *self._handlers) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in self._pending.values():
            if not future.done():
                future.set_exception(RequestFailed.because("unavailable", "the channel is closed"))
        self._socket.close(linger=LINGER)

    async def _request(self, peer: bytes, message: Message, timeout: float) -> Message:
        request_id = next(self._ids)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[peer, request_id] = future
        try:
            async with asyncio.timeout(timeout):
                await self._send(peer, encode(message, request_id))
                answer = await future
        except TimeoutError as error:
            raise RequestTimeout(f"no answer to {type(message).__name__} in {timeout:g} s") from error
        finally:
            del self._pending[peer, request_id]
        if isinstance(answer, Failure):
            raise RequestFailed(answer)
        return answer

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            peer, data = (frames[0], frames[1]) if len(frames) == 2 else (b"", frames[0])
            try:
                envelope = decode(data)
            except CodecError as error:
                self.refused += 1
                log.warning("refused a message from %s: %s", _name(peer), error)
                if error.request_id:
                    refusal = Failure("bad-request", str(error))
                    await self._answer(peer, error.request_id, refusal)
                continue
            if envelope.reply:
                future = self._pending.get((peer, envelope.request_id))
                if future is not None and not future.done():
                    future.set_result(envelope.message)
                continue
            await self._slots.acquire()
            task = asyncio.get_running_loop().create_task(self._handle(peer, envelope.request_id, envelope.message))
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)
            task.add_done_callback(lambda _: self._slots.release())

    async def _handle(self, peer: bytes, request_id: int, message: Message) -> None:
        try:
            answer = await self._dispatch(peer, message)
        except RequestFailed as error:
            answer = error.failure
        except Exception:  # whatever a handler does wrong, the process and the channel live on
            log.exception("handling %s from %s failed", type(message).__name__, _name(peer))
            answer = Failure("internal", f"{type(message).__name__} failed; the log says why")
        if request_id:
            await self._answer(peer, request_id, messages.Empty() if answer is None else answer)

    async def _answer(self, peer: bytes, request_id: int, answer: Message) -> None:
        try:
            data = encode(answer, request_id, reply=True)
        except CodecError as error:
            data = encode(Failure("internal", str(error)), request_id, reply=True)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._send(peer, data)
        except (RequestFailed, TimeoutError) as error:
            log.debug("%s does not take its answer: %s", _name(peer), error)

    async def _send(self, peer: bytes, data: bytes) -> None:
        raise NotImplementedError

    async def _dispatch(self, peer: bytes, message: Message) -> Message | None:
        raise NotImplementedError


class Requester(_Channel):
    """The end that connects. ZeroMQ reconnects by itself; requests in between wait for it until their deadline."""

    def __init__(
        self, context: zmq.asyncio.Context, endpoint: str, identity: bytes = b"", handler: Handler | None = None
    ) -> None:
        super().__init__(context.socket(zmq.DEALER))
        self._handler = handler
        if identity:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_SIZE)
        self._socket.connect(endpoint)

    async def request(self, message: Message, timeout: float = REQUEST_TIMEOUT) -> Message:
        """The answer to `message`. Raises RequestTimeout, or RequestFailed with the `Failure` answered."""
        return await self._request(b"", message, timeout)

    async def notify(self, message: Message) -> None:
        """Send a message that is not answered."""
        await self._send(b"", encode(message))

    async def _send(self, peer: bytes, data: bytes) -> None:
        await self._socket.send(data)

    async def _dispatch(self, peer: bytes, message: Message) -> Message | None:
        if self._handler is None:
            raise RequestFailed.because("bad-request", f"nobody here takes {type(message).__name__}")
        return await self._handler(message)


class Responder(_Channel):
    """The end that binds, with any number of peers, each known by its identity."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, handler: PeerHandler) -> None:
        super().__init__(context.socket(zmq.ROUTER))
        self._handler = handler
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_SIZE)
        # An unknown peer is an error, not silence; a restarted worker takes over the identity of the dead one.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.bind(endpoint)

    async def request(self, identity: bytes, message: Message, timeout: float = REQUEST_TIMEOUT) -> Message:
        """The peer's answer. Raises RequestTimeout, or RequestFailed (``unavailable``: no such peer)."""
        return await self._request(identity, message, timeout)

    async def notify(self, identity: bytes, message: Message) -> None:
        """Send a message that is not answered. Raises RequestFailed when there is no such peer."""
        await self._send(identity, encode(message))

    async def _send(self, peer: bytes, data: bytes) -> None:
        try:
            await self._socket.send_multipart([peer, data])
        except zmq.ZMQError as error:
            reason = f"{_name(peer)} cannot be reached: {error}"
            raise RequestFailed.because("unavailable", reason) from error

    async def _dispatch(self, peer: bytes, message: Message) -> Message | None:
        return await self._handler(peer, message)


class EventPublisher:
    """Tells whoever listens."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str) -> None:
        # PUB never blocks, so a plain socket serves: no future to wait for.
        self._socket: zmq.Socket[bytes] = zmq.Context.shadow(context).socket(zmq.PUB)
        self._socket.bind(endpoint)
        self._listeners: list[Callable[[Message], None]] = []

    def listen(self, listener: Callable[[Message], None]) -> None:
        """Call somebody of this process with every event as well."""
        self._listeners.append(listener)

    def publish(self, message: Message) -> None:
        """Send an event."""
        self._socket.send(encode(message))
        for listener in self._listeners:
            listener(message)

    def close(self) -> None:
        """Stop; what is queued has `LINGER` to leave."""
        self._socket.close(linger=LINGER)


class EventSubscriber:
    """Hears a publisher's events, in one thread."""

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_SIZE)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self.refused = 0
        """Events received that the codec refused."""

    def receive(self, timeout: float) -> Message | None:
        """The next event; None when there was none within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._socket.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            try:
                return decode(self._socket.recv()).message
            except CodecError as error:
                self.refused += 1
                log.warning("refused an event: %s", error)
        return None

    def close(self) -> None:
        """Stop listening."""
        self._socket.close(linger=0)


class BlockingRequester:
    """A requester for threads: any thread may ask; a socket is made when no idle one is left."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._idle: SimpleQueue[zmq.Socket[bytes]] = SimpleQueue()
        self._ids = itertools.count(1)

    def request(self, message: Message, timeout: float = REQUEST_TIMEOUT) -> Message:
        """The answer to `message`. Raises RequestTimeout, or RequestFailed with the `Failure` answered."""
        try:
            socket = self._idle.get_nowait()
        except Empty:
            socket = self._connect()
        try:
            return self._ask(socket, message, timeout)
        finally:
            self._idle.put(socket)

    def close(self) -> None:
        """Close the sockets; no thread may be asking."""
        while not self._idle.empty():
            self._idle.get_nowait().close(linger=0)

    def _connect(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_SIZE)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._endpoint)
        return socket

    def _ask(self, socket: zmq.Socket[bytes], message: Message, timeout: float) -> Message:
        request_id = next(self._ids)
        deadline = time.monotonic() + timeout
        data = encode(message, request_id)
        if socket.poll(round(timeout * 1000), zmq.POLLOUT):
            socket.send(data)
        while socket.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            try:
                envelope = decode(socket.recv())
            except CodecError as error:
                if error.request_id != request_id:
                    continue
                raise RequestFailed.because("internal", f"the answer was refused: {error}") from error
            if envelope.request_id != request_id:
                continue  # the answer to an earlier request by this socket, too late
            if isinstance(envelope.message, Failure):
                raise RequestFailed(envelope.message)
            return envelope.message
        raise RequestTimeout(f"no answer to {type(message).__name__} in {timeout:g} s")


def _name(peer: bytes) -> str:
    return repr(peer[:60])[1:] if peer else "the other end"
