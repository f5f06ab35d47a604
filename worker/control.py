"""A worker's talk with the supervisor: ZeroMQ for messages, a SEQPACKET socket for descriptors.

A supervisor that is gone changes nothing for the guest: the worker keeps its flows and forwards, and only what needs
the supervisor (a new lease, statistics) waits for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any, Protocol

import zmq
import zmq.asyncio

from proto.channels import Requester
from proto.errors import CodecError, RequestFailed
from proto.fdpass import FdChannel
from proto.messages import (
    AddForward,
    CallGuest,
    Empty,
    Failure,
    GetStats,
    Hello,
    LeaseRelease,
    LeaseRequest,
    Network,
    RemoveForward,
    Shutdown,
    UpdateNetwork,
    WorkerStats,
)
from worker.addr import pack_ipv4, widen
from worker.policy import TCP, UDP

STATS_INTERVAL = 1.0
MAX_EVENTS_WAITING = 64
"""Events on their way out at once; more are dropped, as each later one says more."""
_PROTOCOLS = {"tcp": TCP, "udp": UDP}

log = logging.getLogger(__name__)


class Forwards(Protocol):
    """What forwards need of `worker.engine.Engine`."""

    def add_listener(
        self, forward_id: int, fd: int, proto: int, guest_ip: bytes, guest_port: int, *, keep_source: bool
    ) -> None: ...
    def remove_listener(self, forward_id: int) -> None: ...
    def call_guest(self, fd: int, guest_ip: bytes, guest_port: int, first_bytes: bytes) -> None: ...


class Control:
    """Both channels of one worker."""

    def __init__(
        self,
        vm_id: str,
        address: str,
        channel: FdChannel,
        engine: Forwards,
        counters: Callable[[], dict[str, int]],
        update_network: Callable[[Network], None],
        shutdown: Callable[[], None],
    ) -> None:
        self._vm_id = vm_id
        self._channel = channel
        self._engine = engine
        self._counters = counters
        self._update_network = update_network
        self._shutdown = shutdown
        self._context = zmq.asyncio.Context(io_threads=1)
        self._requester = Requester(self._context, address, vm_id.encode(), self._on_message)
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervised = True

    def start(self) -> None:
        """Connect and say hello."""
        self._requester.start()
        self.tell(Hello(self._vm_id, os.getpid()))
        loop = asyncio.get_running_loop()
        for work in (self._receive_descriptors(), self._report()):
            self._keep(loop.create_task(work))

    async def ask(self, message: LeaseRequest | LeaseRelease, timeout: float) -> Any:
        """The supervisor's answer. Raises ChannelError."""
        return await self._requester.request(message, timeout)

    def tell(self, event: Any) -> None:
        """Send an event; it is not waited for."""
        if len(self._tasks) < MAX_EVENTS_WAITING:
            self._keep(asyncio.get_running_loop().create_task(self._requester.notify(event)))
        else:
            log.debug("%s dropped: the supervisor does not read", type(event).__name__)

    async def close(self, last_words: Any = None) -> None:
        """Send the final counters and a last event, where there is one, and disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if last_words is not None and self._supervised:
            try:
                async with asyncio.timeout(STATS_INTERVAL):
                    await self._requester.notify(WorkerStats(self._vm_id, self._counters()))
                    await self._requester.notify(last_words)
            except TimeoutError:
                log.warning("the supervisor did not take the last event")
        await self._requester.close()
        self._context.term()
        self._channel.close()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("talk with the supervisor failed", exc_info=error)

    async def _on_message(self, message: Any) -> Any:
        match message:
            case GetStats():
                return WorkerStats(self._vm_id, self._counters())
            case UpdateNetwork(network):
                try:
                    self._update_network(network)
                except ValueError as error:
                    raise RequestFailed.because("bad-request", str(error)) from error
            case RemoveForward(forward_id):
                try:
                    self._engine.remove_listener(forward_id)
                except KeyError as error:
                    raise RequestFailed.because("not-found", f"there is no forward {forward_id}") from error
            case Shutdown():
                self._shutdown()
            case _:
                raise RequestFailed.because("bad-request", f"a worker does not take {type(message).__name__}")
        return Empty()

    async def _receive_descriptors(self) -> None:
        """Take `AddForward` and `CallGuest` with their descriptors until the supervisor is gone."""
        while True:
            try:
                message, fds = await self._channel.arecv()
                await self._channel.asend(self._take_descriptor(message, fds))
            except CodecError as error:
                log.warning("refused a message with descriptors: %s", error)
            except (EOFError, OSError):
                self._supervised = False
                log.warning("the supervisor is gone; traffic goes on without it")
                return

    def _take_descriptor(self, message: Any, fds: list[int]) -> Empty | Failure:
        """The engine's from now on; one that it refuses stays ours and is closed."""
        name = type(message).__name__
        try:
            if not isinstance(message, AddForward | CallGuest) or len(fds) != 1:
                return Failure("bad-request", f"a worker does not take {name} with {len(fds)} descriptors")
            guest_ip = widen(pack_ipv4(message.guest_ip))
            if isinstance(message, CallGuest):
                self._engine.call_guest(fds[0], guest_ip, message.guest_port, message.first_bytes)
            else:
                proto, keep_source = _PROTOCOLS[message.protocol], message.source == "keep"
                self._engine.add_listener(
                    message.forward_id, fds[0], proto, guest_ip, message.guest_port, keep_source=keep_source
                )
            fds = []
        except (ValueError, OSError) as error:
            return Failure("bad-request", f"{name} refused: {error}")
        finally:
            for fd in fds:
                os.close(fd)
        return Empty()

    async def _report(self) -> None:
        """Statistics once a second, while they change and somebody is there to read them."""
        last: dict[str, int] = {}
        while self._supervised:
            await asyncio.sleep(STATS_INTERVAL)
            current = self._counters()
            if current != last:
                last = current
                await self._requester.notify(WorkerStats(self._vm_id, current))
