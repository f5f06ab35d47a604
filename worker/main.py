"""One worker: builds the engine, the services and the talk with the supervisor, and runs until the link ends.

The only place that knows all parts of a worker. The engine's upcalls arrive here and go to whom they concern.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from typing import Any

from proto.fdpass import FdChannel
from proto.framing import FrameReader
from proto.messages import GuestSeen, LinkClosed, Network, Spawn
from worker import logs
from worker.addr import ipv4_text, mac_text, narrow, pack_ipv4, pack_mac, widen
from worker.control import Control
from worker.engine import Engine
from worker.policy import Policy
from worker.selector import EngineSelector
from worker.services.gateway import Gateway
from worker.upcalls import Upcall

MAX_UPCALLS_PER_TURN = 64
"""Then the loop looks at its timers and control messages before it goes on."""

log = logging.getLogger(__name__)


class Worker:
    """The composition of one VM's network. Make it on the running loop."""

    def __init__(self, spawn: Spawn, engine: Engine, channel: FdChannel) -> None:
        self._vm_id = spawn.vm_id
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._policy = Policy.of(spawn.network)
        self._control = Control(
            spawn.vm_id,
            spawn.control_address,
            channel,
            engine,
            self._counters,
            self._update_network,
            self._end,
            ends_with_supervisor=spawn.ends_with_supervisor,
        )
        self._gateway = Gateway(self._loop, engine, spawn.network, self._policy, spawn.vm_id, self._control.ask)
        self._upcalls: deque[tuple[Any, ...]] = deque()
        self._upcall_errors = 0
        self._turn: asyncio.Handle | None = None
        self._ended = asyncio.Event()
        self._last_words: LinkClosed | None = None
        self._handlers: dict[int, Callable[..., None]] = {
            Upcall.FRAME: self._gateway.on_frame,
            Upcall.VERDICT: self._on_verdict,
            Upcall.STREAM: self._on_stream,
            Upcall.LINK_CLOSED: self._on_link_closed,
            Upcall.GUEST: self._on_guest,
            Upcall.ECHO: self._gateway.on_echo,
        }
        self._map_addresses()

    async def run(self) -> None:
        """Serve until the link closes or the supervisor says so."""
        self._loop.add_signal_handler(signal.SIGTERM, self._end)
        self._control.start()
        self._loop.add_reader(self._engine.upcall_fd, self._on_upcalls)
        await self._ended.wait()
        self._loop.remove_reader(self._engine.upcall_fd)
        if self._turn is not None:
            self._turn.cancel()
        self._gateway.close()
        await self._control.close(self._last_words)

    def _counters(self) -> dict[str, int]:
        return self._engine.counters() | self._gateway.counters() | {"worker.upcall_errors": self._upcall_errors}

    def _update_network(self, network: Network) -> None:
        # Addresses, MAC and MTU are fixed for the life of a link; what may change is what the services answer.
        self._gateway.update(network)

    def _map_addresses(self) -> None:
        for guest_side, host_side in self._policy.nat.items():
            self._engine.map_address(widen(guest_side), widen(host_side))

    def _end(self) -> None:
        self._ended.set()

    def _on_upcalls(self) -> None:
        if self._turn is None:  # until then they wait in the engine, whose queue is bounded
            self._upcalls.extend(self._engine.take_upcalls())
            self._dispatch()

    def _dispatch(self) -> None:
        """A bounded number of upcalls; the rest after the loop has been round once."""
        self._turn = None
        for _ in range(min(len(self._upcalls), MAX_UPCALLS_PER_TURN)):
            kind, *details = self._upcalls.popleft()
            try:
                self._handlers[kind](*details)
            except Exception:  # a guest's bytes may show a fault here: this packet is lost, the worker is not
                self._upcall_errors += 1
                log.exception("upcall %s failed", kind)
        if self._upcalls:
            self._turn = self._loop.call_soon(self._dispatch)

    def _on_verdict(self, proto: int, dst: bytes, dport: int, frame: bytes) -> None:
        verdict = self._policy.decide(proto, dst, dport)
        self._engine.set_verdict(proto, dst, dport, verdict.action, verdict.host_addr, verdict.host_port)
        self._engine.inject(frame)

    def _on_stream(self, fd: int, src: bytes, _sport: int, _dst: bytes, dport: int) -> None:
        self._gateway.on_stream(fd, src, dport)

    def _on_guest(self, mac: bytes, ip: bytes) -> None:
        packed = narrow(ip)
        self._control.tell(GuestSeen(self._vm_id, mac_text(mac), ipv4_text(packed) if packed else ""))

    def _on_link_closed(self, reason: str, by_guest: bool) -> None:
        log.info("link closed: %s", reason)
        self._last_words = LinkClosed(self._vm_id, reason, by_guest)
        self._end()


def make_engine(spawn: Spawn, link_fds: Sequence[int]) -> Engine:
    """The engine of a VM on its socket or its two pipes.

    Raises ValueError on addresses that are none, or an MTU out of range.
    """
    network = spawn.network
    subnet = IPv4Network(network.subnet, strict=False)
    return Engine(
        link_fds[0],
        spawn.framing,
        network.mtu,
        pack_mac(network.gateway_mac),
        widen(pack_ipv4(network.gateway_ip)),
        widen(subnet.network_address.packed),
        96 + subnet.prefixlen,
        link_out_fd=link_fds[-1],
        resync=spawn.resync,
        guest_mac=pack_mac(spawn.guest_mac),
    )


def take_first(engine: Engine, spawn: Spawn) -> None:
    """Let the engine have what was read of its link before."""
    if not spawn.first_bytes:
        return
    if spawn.framing == "messages":
        reader, size = FrameReader(), len(spawn.first_bytes)
        reader.space()[:size] = spawn.first_bytes
        for frame in reader.received(size):
            engine.inject(bytes(frame))
    else:
        engine.receive(spawn.first_bytes)


def run(spawn: Spawn, link_fds: Sequence[int], channel_fd: int) -> None:
    """Be the worker of one VM until its link ends. Owns the descriptors: after those of the link comes that of the file
    of captures, where there is one."""
    logs.configure(spawn.vm_id, spawn.log_level, spawn.log_format)
    channel = FdChannel(socket.socket(fileno=channel_fd))
    captures = list(link_fds[-1:]) if spawn.capture_interface >= 0 else []
    engine = make_engine(spawn, link_fds[: len(link_fds) - len(captures)])
    for fd in captures:
        engine.add_capture(fd, spawn.capture_interface)
    take_first(engine, spawn)  # before the loop, whose first turn reads what follows

    async def serve() -> None:
        await Worker(spawn, engine, channel).run()

    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(EngineSelector(engine))) as runner:
            runner.run(serve())
    finally:
        # After the loop, whose own descriptors the engine watches.
        engine.close()
