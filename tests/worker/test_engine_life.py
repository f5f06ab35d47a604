"""An engine's own life: what it refuses to be made of, what it leaves behind, and its face to a selector."""

import gc
import selectors
import socket
from functools import partial
from typing import Any

import psutil
import pytest
from dpkt.tcp import TH_ACK, TH_FIN, TH_SYN

from tests.worker.framebed import GATEWAY_MAC, TCP, UDP, Bed, fragment, open_descriptors, udp, wide
from tests.worker.guest_tcp import GuestTcp
from worker.engine import Engine
from worker.upcalls import Action


def make(link_fd: int, framing: str = "stream32", mtu: int = 1500, mac: bytes = GATEWAY_MAC, **more: Any) -> Engine:
    return Engine(link_fd, framing, mtu, mac, wide("192.168.127.1"), wide("192.168.127.0"), 120, **more)


@pytest.mark.parametrize(
    "wrong",
    [
        {"framing": "pigeon"},
        {"readiness": "kqueue"},
        {"mtu": 575},
        {"mtu": 65536},
        {"mac": b"short"},
    ],
)
def test_an_engine_that_cannot_be_made_takes_nothing(wrong: dict[str, Any]) -> None:
    ours, theirs = socket.socketpair()
    gc.collect()
    before = open_descriptors()
    with pytest.raises(ValueError, match=r"framing|readiness|mtu|MAC"):
        make(theirs.fileno(), **wrong)
    assert open_descriptors() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        make(-1)
    gc.collect()
    assert open_descriptors() == before
    ours.close()
    theirs.close()


def occupy(bed: Bed) -> None:
    """Leave something in every list of the engine."""
    server, echo = bed.tcp_server(), bed.udp_server()
    bed.allow(TCP, server.getsockname()[1])
    bed.allow(UDP, echo.getsockname()[1])
    bed.judge(TCP, Action.LOCAL, dport=81)
    bed.forward(TCP, 80, 1)
    bed.connect(bed.forward(TCP, 81, 2))
    bed.udp_server().sendto(b"hello", ("127.0.0.1", bed.forward(UDP, 7, 3)))
    bed.expect_udp(7)
    GuestTcp(bed).open().write(bytes(1000))
    half = GuestTcp(bed, sport=2).open()
    half.say(TH_ACK | TH_FIN)
    bed.accept(server).send(bytes(100_000))
    GuestTcp(bed, dport=81, sport=3).syn()
    bed.send(udp(b"", 80), fragment(bytes(8), 8, more=True), GuestTcp(bed, sport=4).segment(TH_SYN))
    bed.settle()
    bed.offer(udp(b"", 99), GuestTcp(bed, dport=81, sport=5).segment(TH_SYN))
    bed.engine.run(0)


def test_closing_leaves_no_descriptor_open(bed: Bed) -> None:
    occupy(bed)
    bed.engine.close()
    bed.engine.close()
    with pytest.raises(ValueError, match="closed"):
        bed.engine.run(0)


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
def test_an_engine_that_is_only_forgotten_leaves_nothing_either(readiness: str) -> None:
    before = open_descriptors()
    ours, theirs = socket.socketpair()
    engine = make(theirs.detach(), readiness=readiness)
    listener = socket.create_server(("127.0.0.1", 0))
    engine.add_listener(1, listener.detach(), TCP, wide("192.168.127.2"), 80)
    del engine
    gc.collect()
    assert ours.recv(1) == b""
    ours.close()
    assert open_descriptors() == before


def test_engines_come_and_go_without_growing_the_process() -> None:
    def cycle() -> None:
        bed = Bed()
        occupy(bed)
        bed.close()

    for _ in range(3):
        cycle()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(20):
        cycle()
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 2_000_000


def test_flows_that_end_leave_no_memory_in_the_engine(one_bed: Bed) -> None:
    server = one_bed.tcp_server(backlog=128)
    one_bed.allow(TCP, server.getsockname()[1])
    for n in range(50):
        guest = GuestTcp(one_bed, sport=1000 + n).open()
        host = one_bed.accept(server)
        host.send(bytes(2000))
        assert guest.read(2000)
        guest.say(TH_ACK | TH_FIN)
        one_bed.run_until(partial(one_bed.at_end, host))
        host.close()
        guest.hear_fin()
    one_bed.run_until(lambda: one_bed.counter("tcp.flows") == 0)
    assert one_bed.counter("memory.rings") == 0
    assert one_bed.counter("tcp.closed") == 50


# --- the selector's side


def test_a_registered_descriptor_is_reported_until_it_is_no_longer_ready(bed: Bed) -> None:
    ours, theirs = (bed.keep(end) for end in socket.socketpair())
    bed.engine.register(ours.fileno(), selectors.EVENT_READ)
    assert bed.engine.run(0) == []
    theirs.send(b"x")
    assert bed.engine.run(1) == bed.engine.run(1) == [(ours.fileno(), selectors.EVENT_READ)]
    bed.engine.modify(ours.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE)
    assert bed.engine.run(1) == [(ours.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE)]
    bed.engine.unregister(ours.fileno())
    assert bed.engine.run(0) == []
    with pytest.raises(KeyError):
        bed.engine.unregister(ours.fileno())


def test_waiting_upcalls_are_reported_on_their_descriptor(bed: Bed) -> None:
    bed.engine.register(bed.engine.upcall_fd, selectors.EVENT_READ)
    assert bed.engine.run(0) == []
    bed.offer(udp(b"", 80))
    for _ in range(2):
        assert bed.engine.run(1) == [(bed.engine.upcall_fd, selectors.EVENT_READ)]
    assert bed.engine.take_upcalls()
    assert bed.engine.run(0) == []


def test_many_descriptors_come_and_go_in_any_order(bed: Bed) -> None:
    pairs = [tuple(bed.keep(end) for end in socket.socketpair()) for _ in range(100)]
    for ours, _ in pairs:
        bed.engine.register(ours.fileno(), selectors.EVENT_READ)
    for ours, _ in pairs[::3]:
        bed.engine.unregister(ours.fileno())
    for _, theirs in pairs:
        theirs.send(b"x")
    expected = {ours.fileno() for n, (ours, _) in enumerate(pairs) if n % 3}
    assert {fd for fd, _ in bed.engine.run(1)} == expected
    for ours, _ in [pair for n, pair in enumerate(pairs) if n % 3]:
        bed.engine.unregister(ours.fileno())
    bed.settle()


def test_a_descriptor_that_cannot_be_watched_is_an_error(bed: Bed) -> None:
    with pytest.raises(OSError, match="descriptor -1"):
        bed.engine.register(-1, selectors.EVENT_READ)
    with pytest.raises(OSError, match="Bad file descriptor"):
        bed.engine.add_listener(1, -1, TCP, wide("192.168.127.2"), 80)
