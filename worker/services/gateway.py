"""The services of one VM's gateway on the loop: hands each frame to its protocol and sends what comes back.

The protocols' modules do no I/O and know no clock; here are the loop's tasks, the clocks, the engine and the way to the
supervisor. Everything a guest can make grow is capped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from proto.errors import ChannelError, RequestFailed
from proto.messages import Lease, LeaseRelease, LeaseRequest, Network
from worker.addr import ipv4_text, narrow, pack_ipv4, pack_mac, widen
from worker.policy import ICMP, Policy
from worker.services import icmp
from worker.services.arp import ArpResponder
from worker.services.dhcp import SERVER_PORT, DhcpServer, Exchange, Refused
from worker.services.dns import Answered, DnsServer, Query
from worker.services.dns_resolver import Resolver
from worker.services.frames import ETHERTYPE_ARP, Datagram, ethertype, pull_ipv4, pull_udp
from worker.services.guest_api import HTTP_PORT, MAX_HEAD, AskSupervisor, GuestApi
from worker.services.icmp import IcmpResponder
from worker.services.ntp import NtpServer
from worker.services.ping import PingRelay
from worker.upcalls import Action

DNS_PORT = 53
NTP_PORT = 123
LEASE_TIMEOUT = 3.0
"""Seconds the supervisor has; a DHCP client asks again after four (RFC 2131 4.1)."""
MAX_LEASE_QUESTIONS = 16
"""DHCP exchanges of one VM under way at once."""
MAX_STREAMS = 32
"""Connections to one of the gateway's services at once."""
DNS_STREAM_TIMEOUT = 10.0
"""Seconds a DNS connection may stay idle, or its client may not read (RFC 7766 6.2.3)."""

log = logging.getLogger(__name__)

ServeStream = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]
"""Serves one connection of a client, whose address is the last; may raise OSError and EOFError at its end."""


class Sender(Protocol):
    """What the services need of `worker.engine.Engine`."""

    def send_frame(self, frame: bytes) -> bool: ...
    def send_udp(
        self, src: bytes, sport: int, dst: bytes, dport: int, payload: bytes, dst_mac: bytes = b""
    ) -> bool: ...


class Gateway:
    """ARP, DHCP, DNS, ICMP, NTP and the API for one VM."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Sender,
        network: Network,
        policy: Policy,
        vm_id: str,
        ask_supervisor: AskSupervisor,
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._policy = policy
        self._ask_supervisor = ask_supervisor
        self._gateway = pack_ipv4(network.gateway_ip)
        stands_for = {self._gateway, pack_ipv4(network.host_ip), *policy.nat}
        self._arp = ArpResponder(pack_mac(network.gateway_mac), frozenset(stands_for))
        self._dhcp = DhcpServer(network, vm_id)
        self._dns = DnsServer(network)
        self._resolver = Resolver(loop, network)
        self._icmp = IcmpResponder(network.gateway_mac, network.gateway_ip, network.mtu)
        self._ping = PingRelay(loop, self._icmp, engine.send_frame)
        self._ntp = NtpServer()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease_questions = 0
        self._api = GuestApi(vm_id, ask_supervisor)
        self._stream_services: dict[int, tuple[str, ServeStream]] = {DNS_PORT: ("dns", self._serve_dns_stream)}
        if network.guest_api:
            self._stream_services[HTTP_PORT] = ("guest_api", self._api.serve)
        self._streams = {"dns": 0, "guest_api": 0}
        self._counters = dict.fromkeys(("services.ignored", "dhcp.unanswered"), 0)
        self._counters |= {f"{name}.{what}": 0 for name in self._streams for what in ("streams", "streams_refused")}
        self._udp_services = {DNS_PORT: self._on_dns, SERVER_PORT: self._on_dhcp, NTP_PORT: self._on_ntp}

    def update(self, network: Network) -> None:
        """Zones, hosts, upstreams, search domains changed."""
        self._dhcp.update(network)
        self._dns.update(network)
        self._resolver.update(network)

    def counters(self) -> dict[str, int]:
        """Of all services."""
        services = (self._arp, self._dhcp, self._dns, self._resolver, self._icmp, self._ping, self._ntp, self._api)
        merged = dict(self._counters)
        for service in services:
            merged |= service.counters
        return merged

    def close(self) -> None:
        """Give up on everything under way."""
        for task in self._tasks:
            task.cancel()
        self._resolver.close()
        self._ping.close()

    def on_frame(self, frame: bytes) -> None:
        """A frame for the gateway, or for everybody."""
        if ethertype(frame) == ETHERTYPE_ARP:
            reply = self._arp.receive(frame)
            if reply is not None:
                self._engine.send_frame(reply)
            return
        packet = pull_ipv4(frame)
        if packet is not None and packet.proto == ICMP:
            for answer in self._icmp.receive(packet):
                self._engine.send_frame(answer)
            return
        datagram = None if packet is None else pull_udp(packet)
        service = None if datagram is None else self._udp_services.get(datagram.dport)
        if datagram is None or service is None:
            self._counters["services.ignored"] += 1
            return
        service(datagram)

    def on_echo(self, frame: bytes) -> None:
        """An echo request to somewhere else than the gateway."""
        packet = pull_ipv4(frame)
        echo = None if packet is None else self._icmp.pull_echo(packet)
        if echo is None:
            return
        verdict = self._policy.decide(ICMP, widen(echo.packet.dst), 0)
        if verdict.action is Action.CARRY:
            host_addr = narrow(verdict.host_addr)
            assert host_addr is not None, verdict
            self._ping.send(echo, host_addr)
            return
        code = {Action.UNREACHABLE: icmp.HOST_UNREACHABLE, Action.REFUSE: icmp.PROHIBITED}.get(verdict.action)
        if code is None:
            self._counters["services.ignored"] += 1
            return
        for answer in self._icmp.error(echo.packet, icmp.UNREACHABLE, code):
            self._engine.send_frame(answer)

    def on_stream(self, fd: int, src: bytes, dport: int) -> None:
        """A TCP connection of `src` to the gateway; `fd` is ours from now on."""
        name, serve = self._stream_services.get(dport, ("", None))
        if serve is None or self._streams[name] >= MAX_STREAMS:
            self._counters[f"{name}.streams_refused" if serve is not None else "services.ignored"] += 1
            os.close(fd)
            return
        client = narrow(src)
        self._counters[f"{name}.streams"] += 1
        self._streams[name] += 1
        self._start(self._serve_stream(name, serve, socket.socket(fileno=fd), ipv4_text(client) if client else ""))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a service failed on a guest's message", exc_info=error)

    # --- NTP, DHCP

    def _on_ntp(self, datagram: Datagram) -> None:
        if datagram.dst != self._gateway:
            return
        answer = self._ntp.receive(datagram.payload, time.time())
        if answer is not None:
            self._answer(datagram, answer)

    def _on_dhcp(self, datagram: Datagram) -> None:
        exchange = self._dhcp.receive(
            datagram.payload, datagram.src_mac, datagram.src, datagram.sport, self._loop.time()
        )
        if exchange is None:
            return
        if exchange.ask is None:
            self._answer_dhcp(exchange, None)
        elif self._lease_questions < MAX_LEASE_QUESTIONS:
            self._lease_questions += 1
            self._start(self._lease(exchange, exchange.ask))
        else:
            self._counters["dhcp.unanswered"] += 1

    async def _lease(self, exchange: Exchange, ask: LeaseRequest | LeaseRelease) -> None:
        lease: Lease | Refused | None = None
        try:
            answer = await self._ask_supervisor(ask, LEASE_TIMEOUT)
            lease = answer if isinstance(answer, Lease) else None
        except ChannelError as error:
            log.warning("no address for %s: %s", ask.mac, error)
            if isinstance(error, RequestFailed) and error.failure.code not in ("unavailable", "internal"):
                lease = Refused()
        finally:
            self._lease_questions -= 1
        self._answer_dhcp(exchange, lease)

    def _answer_dhcp(self, exchange: Exchange, lease: Lease | Refused | None) -> None:
        reply = self._dhcp.answer(exchange, lease, self._loop.time())
        if reply is not None:
            self._engine.send_udp(
                widen(self._gateway), SERVER_PORT, widen(reply.dst), reply.dport, reply.payload, reply.dst_mac
            )
        elif isinstance(exchange.ask, LeaseRequest):
            self._counters["dhcp.unanswered"] += 1

    # --- DNS

    def _on_dns(self, datagram: Datagram) -> None:
        if datagram.dst != self._gateway:
            return
        decision = self._dns.receive(datagram.payload, over_tcp=False)
        if isinstance(decision, Answered):
            self._answer(datagram, decision.wire)
        elif decision is not None:
            self._start(self._forward_dns(datagram, decision.query))

    async def _forward_dns(self, datagram: Datagram, query: Query) -> None:
        self._answer(datagram, self._dns.fit(query, await self._resolver.resolve(query)))

    async def _serve_dns_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: str) -> None:
        """Answer one client's queries, in their order, until it is done or idle."""
        while True:
            async with asyncio.timeout(DNS_STREAM_TIMEOUT):
                length = int.from_bytes(await reader.readexactly(2), "big")
                wire = await reader.readexactly(length)
            decision = self._dns.receive(wire, over_tcp=True)
            if decision is None:
                return
            if isinstance(decision, Answered):
                answer = decision.wire
            else:
                answer = self._dns.fit(decision.query, await self._resolver.resolve(decision.query))
            writer.write(len(answer).to_bytes(2, "big") + answer)
            async with asyncio.timeout(DNS_STREAM_TIMEOUT):
                await writer.drain()

    async def _serve_stream(self, name: str, serve: ServeStream, sock: socket.socket, client: str) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_HEAD)
        except (OSError, ValueError):
            sock.close()
            self._streams[name] -= 1
            return
        try:
            await serve(reader, writer, client)
        except (OSError, EOFError):  # TimeoutError is an OSError; IncompleteReadError an EOFError
            return
        finally:
            self._streams[name] -= 1
            writer.close()

    def _answer(self, datagram: Datagram, payload: bytes) -> None:
        self._engine.send_udp(
            widen(datagram.dst), datagram.dport, widen(datagram.src), datagram.sport, payload, datagram.src_mac
        )
