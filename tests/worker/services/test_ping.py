import asyncio
import ctypes
import errno
import logging
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import dpkt
import pytest

from worker.services import ping
from worker.services.frames import Packet, pull_ipv4
from worker.services.icmp import Echo, IcmpResponder
from worker.services.ping import PingRelay

GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xee"
GUEST, ALIAS = bytes([192, 168, 127, 2]), bytes([192, 168, 127, 254])
LOOPBACK = bytes([127, 0, 0, 1])
CLONE_NEWNET = 0x40000000
PING_GROUP_RANGE = Path("/proc/sys/net/ipv4/ping_group_range")


def echo(seq: int = 1, ident: int = 0x4242, data: bytes = b"data", ttl: int = 64, dst: bytes = ALIAS) -> Echo:
    message = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=ident, seq=seq, data=data))
    header = bytes(dpkt.ip.IP(src=GUEST, dst=dst, p=1, ttl=ttl))[:20]
    return Echo(Packet(GUEST_MAC, GUEST, dst, 1, ttl, header, bytes(message)), ident, seq, data)


class Scene:
    """A relay and what it sends to the guest."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        responder = IcmpResponder("5a:94:ef:e4:0c:dd", "192.168.127.1", 1500)
        self.relay = PingRelay(asyncio.get_running_loop(), responder, self.send_frame)

    def send_frame(self, frame: bytes) -> bool:
        self.frames.put_nowait(frame)
        return True

    async def next_packet(self) -> Packet:
        async with asyncio.timeout(5):
            packet = pull_ipv4(await self.frames.get())
        assert packet is not None
        return packet


def play(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene()
        try:
            await scenario(scene)
        finally:
            scene.relay.close()
        assert scene.relay.counters["icmp.ping_sockets"] == 0

    asyncio.run(run())


@pytest.fixture
def ping_allowed() -> Iterator[None]:
    """A network namespace of the test's own, where ping sockets are allowed: hosts differ, and some forbid them."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            PING_GROUP_RANGE.write_text("0 2147483647")
            yield
        finally:
            assert libc.setns(before, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(before)


@pytest.mark.usefixtures("ping_allowed")
def test_the_host_alias_answers_under_the_guests_id_and_from_its_own_address() -> None:
    async def scenario(scene: Scene) -> None:
        scene.relay.send(echo(seq=1), LOOPBACK)
        scene.relay.send(echo(seq=2, data=bytes(2000)), LOOPBACK)
        packet = await scene.next_packet()
        reply = dpkt.icmp.ICMP(packet.payload)
        assert (packet.src, packet.dst) == (ALIAS, GUEST)
        assert (reply.type, reply.data.id, reply.data.seq, bytes(reply.data.data)) == (0, 0x4242, 1, b"data")
        fragments = [await scene.next_packet(), await scene.next_packet()]
        assert sum(len(fragment.payload) for fragment in fragments) == 2008
        assert scene.relay.counters["icmp.ping_sockets"] == 1

    play(scenario)


@pytest.mark.usefixtures("ping_allowed")
def test_the_socket_unused_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping, "MAX_SOCKETS", 2)

    async def scenario(scene: Scene) -> None:
        for ident in (1, 2, 1, 3):
            scene.relay.send(echo(ident=ident), LOOPBACK)
        assert scene.relay.counters["icmp.ping_evicted"] == 1
        assert scene.relay.counters["icmp.ping_sockets"] == 2
        idents = {dpkt.icmp.ICMP((await scene.next_packet()).payload).data.id for _ in range(3)}
        assert idents == {1, 3}

    play(scenario)


@pytest.mark.usefixtures("ping_allowed")
def test_idle_sockets_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping, "IDLE_TIMEOUT", 0.02)

    async def scenario(scene: Scene) -> None:
        scene.relay.send(echo(), LOOPBACK)
        async with asyncio.timeout(5):
            while scene.relay.counters["icmp.ping_sockets"]:
                await asyncio.sleep(0.01)

    play(scenario)


def test_a_ttl_of_one_ends_at_the_gateway() -> None:
    async def scenario(scene: Scene) -> None:
        scene.relay.send(echo(ttl=1), LOOPBACK)
        packet = await scene.next_packet()
        assert (packet.src, packet.payload[:2]) == (bytes([192, 168, 127, 1]), bytes([11, 0]))

    play(scenario)


@pytest.mark.usefixtures("ping_allowed")
def test_no_route_is_told_to_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unroutable(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    async def scenario(scene: Scene) -> None:
        monkeypatch.setattr("worker.services.ping.socket.socket", Unroutable)
        scene.relay.send(echo(), LOOPBACK)
        monkeypatch.undo()
        assert (await scene.next_packet()).payload[:2] == bytes([3, 0])

    play(scenario)


def test_a_host_that_forbids_ping_is_complained_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Forbidden(socket.socket):
        def __init__(self, *_: object) -> None:
            raise PermissionError(13, "Permission denied")

    async def scenario(scene: Scene) -> None:
        monkeypatch.setattr("worker.services.ping.socket.socket", Forbidden)
        with caplog.at_level(logging.WARNING):
            for seq in range(3):
                scene.relay.send(echo(seq=seq), LOOPBACK)
        monkeypatch.undo()
        assert scene.relay.counters["icmp.ping_forbidden"] == 3
        assert len(caplog.records) == 1
        assert scene.frames.empty()

    play(scenario)


@pytest.mark.usefixtures("ping_allowed")
def test_errors_of_the_world_reach_the_guest_from_who_sent_them() -> None:
    """A route through a neighbour that is not there: the kernel's own host-unreachable, after ARP has failed."""
    subprocess.run(["ip", "link", "add", "dummy0", "type", "veth", "peer", "name", "dummy1"], check=True)
    for command in ("link set dummy0 up", "link set dummy1 up", "addr add 203.0.113.1/24 dev dummy0"):
        subprocess.run(["ip", *command.split()], check=True)
    Path("/proc/sys/net/ipv4/neigh/dummy0/retrans_time_ms").write_text("50")

    async def scenario(scene: Scene) -> None:
        nobody = bytes([203, 0, 113, 9])
        request = echo(dst=nobody, seq=9)
        scene.relay.send(request, nobody)
        packet = await scene.next_packet()
        assert packet.payload[:2] == bytes([3, 1])
        assert (packet.src, packet.payload[8:]) == (
            bytes([203, 0, 113, 1]),
            request.packet.header + request.packet.payload[:8],
        )

    play(scenario)
