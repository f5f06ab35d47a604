"""A worker's talk with the supervisor: ZeroMQ for messages, a SEQPACKET socket for descriptors.

A supervisor that is gone changes nothing for the guest: the worker keeps its flows and forwards, and only what needs
the supervisor (a new lease, statistics) waits for the next one. Where there will be none, the worker ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zmq
import zmq.asyncio

from proto.captures import AddCapture
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
    Network,
    RemoveForward,
    Shutdown,
    UpdateNetwork,
    WorkerStats,
)
from proto.switch import AddPeer, JoinSwitch, RemovePeer, SetGuest
from worker.addr import pack_ipv4, pack_mac, widen
from worker.policy import TCP, UDP

STATS_INTERVAL = 1.0
MAX_EVENTS_WAITING = 64
"""Events on their way out at once; more are dropped, as each later one says more."""
_PROTOCOLS = {"tcp": TCP, "udp": UDP}

log = logging.getLogger(__name__)


class Datapath(Protocol):
    """What descriptors from the supervisor are for: of `worker.engine.Engine`."""

    def add_listener(
        self, forward_id: int, fd: int, proto: int, guest_ip: bytes, guest_port: int, *, keep_source: bool
    ) -> None: ...
    def remove_listener(self, forward_id: int) -> None: ...
    def call_guest(self, fd: int, guest_ip: bytes, guest_port: int, first_bytes: bytes) -> None: ...
    def join_switch(self, port_security: bool) -> None: ...
    def set_guest(self, mac: bytes, addresses: Sequence[bytes]) -> None: ...
    def add_peer(self, number: int, fd: int, mac: bytes, addresses: Sequence[bytes]) -> None: ...
    def remove_peer(self, number: int) -> None: ...
    def add_capture(self, fd: int, interface: int, snaplen: int, buffer_fd: int) -> None: ...


class Control:
    """Both channels of one worker."""

    def __init__(
        self,
        vm_id: str,
        address: str,
        channel: FdChannel,
        engine: Datapath,
        counters: Callable[[], dict[str, int]],
        update_network: Callable[[Network], None],
        shutdown: Callable[[], None],
        *,
        ends_with_supervisor: bool = False,
    ) -> None:
        self._vm_id = vm_id
        self._channel = channel
        self._engine = engine
        self._counters = counters
        self._update_network = update_network
        self._shutdown = shutdown
        self._ends_with_supervisor = ends_with_supervisor
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

    async def ask(self, message: Any, timeout: float) -> Any:
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
            case SetGuest(mac, ips):
                self._set_guest(mac, ips)
            case Shutdown():
                self._shutdown()
            case _:
                raise RequestFailed.because("bad-request", f"a worker does not take {type(message).__name__}")
        return Empty()

    def _set_guest(self, mac: str, ips: Sequence[str]) -> None:
        try:
            self._engine.set_guest(pack_mac(mac), _pack(ips))
        except ValueError as error:
            raise RequestFailed.because("bad-request", str(error)) from error

    async def _receive_descriptors(self) -> None:
        """Do what comes over the SEQPACKET socket, in its order, until the supervisor is gone."""
        while True:
            try:
                message, fds = await self._channel.arecv()
                await self._channel.asend(self._obey(message, fds))
            except CodecError as error:
                log.warning("refused a message with descriptors: %s", error)
            except (EOFError, OSError):
                self._supervised = False
                if self._ends_with_supervisor:
                    self._shutdown()
                else:
                    log.warning("the supervisor is gone; traffic goes on without it")
                return

    def _obey(self, message: Any, fds: list[int]) -> Empty | Failure:
        try:
            self._hand_on(message, fds)
        except (ValueError, KeyError, OSError) as error:
            answer = Failure("bad-request", f"{type(message).__name__} refused: {error}")
        except Exception:  # whatever is wrong with this one, the next is for the engine again
            log.exception("handling %s failed", type(message).__name__)
            answer = Failure("internal", f"{type(message).__name__} failed; the log says why")
        else:
            return Empty()
        for fd in fds:
            os.close(fd)
        return answer

    def _hand_on(self, message: Any, fds: list[int]) -> None:
        """Give the engine what is meant for it. On an exception the descriptors are still ours."""
        match message, fds:
            case AddForward(), [fd]:
                guest_ip = widen(pack_ipv4(message.guest_ip))
                proto, keep_source = _PROTOCOLS[message.protocol], message.source == "keep"
                self._engine.add_listener(
                    message.forward_id, fd, proto, guest_ip, message.guest_port, keep_source=keep_source
                )
            case CallGuest(guest_ip, guest_port, first_bytes), [fd]:
                self._engine.call_guest(fd, widen(pack_ipv4(guest_ip)), guest_port, first_bytes)
            case AddCapture(interface, snaplen), [fd, buffer_fd]:
                self._engine.add_capture(fd, interface, snaplen, buffer_fd)
            case JoinSwitch(port_security), []:
                self._engine.join_switch(port_security)
            case AddPeer(number, mac, ips), [] | [_]:
                self._engine.add_peer(number, fds[0] if fds else -1, pack_mac(mac), _pack(ips))
            case RemovePeer(number), []:
                self._engine.remove_peer(number)
            case _:
                raise ValueError(f"with {len(fds)} descriptors it is nothing for a worker")

    async def _report(self) -> None:
        """Statistics once a second, while they change and somebody is there to read them."""
        last: dict[str, int] = {}
        while self._supervised:
            await asyncio.sleep(STATS_INTERVAL)
            current = self._counters()
            if current != last:
                last = current
                await self._requester.notify(WorkerStats(self._vm_id, current))


def _pack(ips: Sequence[str]) -> list[bytes]:
    return [widen(pack_ipv4(ip)) for ip in ips]
