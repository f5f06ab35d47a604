import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import dns.message
import dns.rcode
import dpkt
import pytest
from dpkt import dhcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto.errors import RequestFailed, RequestTimeout
from proto.messages import Lease, LeaseRelease, LeaseRequest, Network
from worker.addr import narrow, pack_ipv4, widen
from worker.policy import Policy
from worker.services import gateway
from worker.services.dns import Query
from worker.services.dns_resolver import Resolver
from worker.services.gateway import Gateway

GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xee"
GATEWAY, GUEST, BROADCAST = (pack_ipv4(f"192.168.127.{last}") for last in (1, 2, 255))
LEASE = Lease("default", "192.168.127.2", "5a:94:ef:e4:0c:ee", 0.0)


def udp_frame(dport: int, payload: bytes, dst: bytes = GATEWAY, src: bytes = GUEST) -> bytes:
    udp = dpkt.udp.UDP(sport=5000, dport=dport, data=payload)
    udp.ulen = len(udp)
    return ip_frame(17, bytes(udp), dst, src)


def ip_frame(proto: int, payload: bytes, dst: bytes = GATEWAY, src: bytes = GUEST) -> bytes:
    ip = dpkt.ip.IP(src=src, dst=dst, p=proto, ttl=64, data=payload)
    ip.len = len(ip)
    return b"\xff" * 6 + GUEST_MAC + b"\x08\0" + bytes(ip)


def echo_frame(dst: bytes) -> bytes:
    return ip_frame(1, bytes(dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=1, seq=1, data=b"x"))), dst)


def dhcp_frame(kind: int = 1) -> bytes:
    message = dhcp.DHCP(chaddr=GUEST_MAC, opts=((53, bytes([kind])), (50, GUEST)))
    return udp_frame(67, bytes(message), dst=b"\xff" * 4, src=bytes(4))


def query(name: str) -> bytes:
    return dns.message.make_query(name, "A").to_wire()


class Scene:
    """A gateway between a guest and a supervisor, both played by the test."""

    def __init__(self, network: Network) -> None:
        self.frames: list[bytes] = []
        self.datagrams: asyncio.Queue[tuple[bytes, int, bytes, int, bytes, bytes]] = asyncio.Queue()
        self.questions: list[LeaseRequest | LeaseRelease] = []
        self.answer: Any = LEASE
        policy = Policy.of(network)
        self.gateway = Gateway(asyncio.get_running_loop(), self, network, policy, "vm-1", self._ask)

    async def _ask(self, message: LeaseRequest | LeaseRelease, timeout: float) -> Any:
        self.questions.append(message)
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def send_frame(self, frame: bytes) -> bool:
        self.frames.append(frame)
        return True

    def send_udp(self, src: bytes, sport: int, dst: bytes, dport: int, payload: bytes, dst_mac: bytes = b"") -> bool:
        self.datagrams.put_nowait((narrow(src) or b"", sport, narrow(dst) or b"", dport, payload, dst_mac))
        return True

    async def next_datagram(self) -> tuple[bytes, int, bytes, int, bytes, bytes]:
        async with asyncio.timeout(5):
            return await self.datagrams.get()


Scenario = Callable[[Scene], Awaitable[None]]


def play(network: Network, scenario: Scenario) -> None:
    async def run() -> None:
        scene = Scene(network)
        try:
            await scenario(scene)
        finally:
            scene.gateway.close()

    asyncio.run(run())


def test_a_lease_comes_from_the_supervisor(network: Network) -> None:
    async def scenario(scene: Scene) -> None:
        scene.gateway.on_frame(dhcp_frame())
        src, sport, dst, dport, payload, dst_mac = await scene.next_datagram()
        assert (src, sport, dst, dport, dst_mac) == (GATEWAY, 67, b"\xff" * 4, 5000, b"\xff" * 6)
        assert dict(dhcp.DHCP(payload).opts)[53] == b"\2"
        assert scene.questions == [LeaseRequest("vm-1", "5a:94:ef:e4:0c:ee", "192.168.127.2")]

    play(network, scenario)


def test_the_supervisors_refusal_is_a_nak_and_its_silence_is_silence(network: Network) -> None:
    async def scenario(scene: Scene) -> None:
        scene.answer = RequestTimeout("no answer")
        scene.gateway.on_frame(dhcp_frame(3))
        async with asyncio.timeout(5):
            while not scene.gateway.counters()["dhcp.unanswered"]:
                await asyncio.sleep(0)
        assert scene.datagrams.empty()
        scene.answer = RequestFailed.because("conflict", "192.168.127.2 is another VM's")
        scene.gateway.on_frame(dhcp_frame(3))
        _, _, dst, _, payload, _ = await scene.next_datagram()
        assert (dst, dict(dhcp.DHCP(payload).opts)[53]) == (b"\xff" * 4, b"\6")

    play(network, scenario)


def test_questions_to_the_supervisor_are_limited(network: Network) -> None:
    async def scenario(scene: Scene) -> None:
        for _ in range(gateway.MAX_LEASE_QUESTIONS + 1):
            scene.gateway.on_frame(dhcp_frame())
        assert scene.gateway.counters()["dhcp.unanswered"] == 1
        for _ in range(gateway.MAX_LEASE_QUESTIONS):
            await scene.next_datagram()

    play(network, scenario)


def test_zones_are_answered_over_udp_and_forwarded_names_fail_without_upstreams(network: Network) -> None:
    async def scenario(scene: Scene) -> None:
        for name, rcode in (("host.containers.internal.", dns.rcode.NOERROR), ("example.com.", dns.rcode.SERVFAIL)):
            scene.gateway.on_frame(udp_frame(53, query(name)))
            src, sport, dst, dport, payload, _ = await scene.next_datagram()
            assert (src, sport, dst, dport) == (GATEWAY, 53, GUEST, 5000)
            assert dns.message.from_wire(payload).rcode() == rcode

    play(replace(network, upstreams=()), scenario)


def test_dns_over_tcp_serves_several_queries_on_one_connection(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(_self: Resolver, query: Query) -> bytes:
        return b"\0\0\x81\x80\0\1" + bytes(6) + query.question + bytes(9000)

    monkeypatch.setattr(Resolver, "resolve", resolve)

    async def scenario(scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        scene.gateway.on_stream(theirs.detach(), widen(GUEST), 53)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        for wire, size in ((query("gateway.containers.internal."), 0), (query("example.com."), 9000)):
            writer.write(len(wire).to_bytes(2, "big") + wire)
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            assert answer[:2] == wire[:2]
            assert len(answer) >= size
        writer.close()
        await writer.wait_closed()

    play(network, scenario)


def test_idle_cut_and_surplus_dns_connections_are_closed(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "DNS_STREAM_TIMEOUT", 0.05)
    monkeypatch.setattr(gateway, "MAX_STREAMS", 2)

    async def scenario(scene: Scene) -> None:
        pairs = [socket.socketpair() for _ in range(4)]
        for (_, theirs), port in zip(pairs, (53, 53, 53, 81), strict=True):
            scene.gateway.on_stream(theirs.detach(), widen(GUEST), port)
        pairs[0][0].send(b"\0")
        for ours, _ in pairs:
            ours.setblocking(False)
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
            ours.close()
        assert scene.gateway.counters()["dns.streams_refused"] == 1

    play(network, scenario)


def test_the_gateway_tells_the_time_and_answers_arp_and_ping(network: Network) -> None:
    async def scenario(scene: Scene) -> None:
        scene.gateway.on_frame(udp_frame(123, bytes([0x23]) + bytes(47)))
        assert len((await scene.next_datagram())[4]) == 48
        arp = dpkt.arp.ARP(sha=GUEST_MAC, spa=GUEST, tha=bytes(6), tpa=pack_ipv4("192.168.127.254"))
        scene.gateway.on_frame(b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + bytes(arp))
        scene.gateway.on_frame(echo_frame(GATEWAY))
        assert [frame[12:14] for frame in scene.frames] == [b"\x08\x06", b"\x08\0"]

    play(network, scenario)


@pytest.mark.parametrize(
    ("dst", "code"), [("192.168.127.9", 1), ("169.254.169.254", 13), ("127.0.0.1", None), ("224.0.0.1", None)]
)
def test_an_echo_that_policy_forbids_is_told_so_or_dropped(network: Network, dst: str, code: int | None) -> None:
    async def scenario(scene: Scene) -> None:
        scene.gateway.on_echo(echo_frame(pack_ipv4(dst)))
        assert [frame[34:36] for frame in scene.frames] == ([] if code is None else [bytes([3, code])])
        assert scene.gateway.counters()["icmp.ping_sockets"] == 0

    play(network, scenario)


def test_queries_sent_to_everybody_are_not_answered(network: Network) -> None:
    async def scenario(scene: Scene) -> None:
        for port in (53, 123):
            scene.gateway.on_frame(udp_frame(port, query("host.containers.internal."), dst=BROADCAST))
        await asyncio.sleep(0)
        assert scene.datagrams.empty()

    play(network, scenario)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(noise=st.binary(max_size=120), port=st.sampled_from([53, 67, 123, 9]), proto=st.sampled_from([1, 17, 6]))
def test_no_frame_raises(
    network: Network, caplog: pytest.LogCaptureFixture, noise: bytes, port: int, proto: int
) -> None:
    async def scenario(scene: Scene) -> None:
        for frame in (noise, udp_frame(port, noise), ip_frame(proto, noise), GUEST_MAC * 2 + b"\x08\x06" + noise):
            scene.gateway.on_frame(frame)
        scene.gateway.on_echo(noise)
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR):
        play(network, scenario)
    assert not caplog.records
