"""Links on which each message is a frame: batches both ways, full queues, ends, take-overs."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.framebed import GATEWAY_IP, GATEWAY_MAC, GUEST_MAC, TCP, Bed, arp, attempt, ethernet, wide
from tests.worker.guest_tcp import GuestTcp
from worker.engine import Engine
from worker.upcalls import Upcall

MTU = 1500
LONGEST = MTU + 14 + 4
"""Bytes of a frame with a VLAN tag."""
FORMS = [(link, readiness) for link in ("seqpacket", "datagram") for readiness in ("epoll", "poll")]


@pytest.fixture(params=FORMS, ids="-".join)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    bed = Bed(*request.param)
    yield bed
    bed.close()


def reply(number: int) -> bytes:
    """A frame to the guest, told apart by `number` and its length."""
    return GUEST_MAC + GATEWAY_MAC + b"\x08\x06" + number.to_bytes(4, "big") + bytes(28 + number % 1000)


def engine_end(bed: Bed) -> socket.socket:
    """Another descriptor of the engine's end, as the supervisor has one."""
    return socket.socket(fileno=os.dup(bed.engine_fd))


def test_frames_that_wait_are_taken_by_one_call(bed: Bed) -> None:
    frames = [arp(number) for number in range(200)]
    bed.offer(*frames)
    bed.turn()
    assert bed.counter("syscalls.link_recv") == 1
    assert bed.frames_up() == frames


def test_more_frames_than_one_call_takes_are_all_taken(bed: Bed) -> None:
    frames = [arp(number) for number in range(500)]
    bed.offer(*frames)
    bed.settle()
    assert bed.frames_up() == frames


def test_frames_to_the_guest_leave_in_one_call_each_a_message(bed: Bed) -> None:
    for number in range(100):
        assert bed.engine.send_frame(reply(number))
    bed.turn()
    assert bed.counter("syscalls.link_send") == 1
    assert [bytes(frame) for frame in bed.inbox] == [reply(number) for number in range(100)]


def test_frames_that_the_guest_is_slow_to_take_keep_their_order_and_bounds(bed: Bed) -> None:
    bed.reading = False
    for number in range(1300):
        assert bed.engine.send_frame(reply(number))
        if number % 100 == 0:
            bed.turn()
    assert bed.counter("link.blocked") > 0
    bed.reading = True
    bed.run_until(lambda: len(bed.inbox) == 1300)
    assert [bytes(frame) for frame in bed.inbox] == [reply(number) for number in range(1300)]
    assert bed.counter("link.tx_dropped") == 0


def test_a_full_link_costs_no_byte_of_a_connection(bed: Bed) -> None:
    server = bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    bed.link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    guest = GuestTcp(bed).open()
    host = bed.accept(server)
    data = os.urandom(300_000)
    sent = host.send(data)
    bed.reading = False
    for number in range(2000):  # fill the link, so that segments come on top
        bed.engine.send_frame(reply(number))
        bed.turn()
    assert bed.counter("link.blocked") > 0
    bed.reading = True
    assert guest.read(sent) == data[:sent]
    assert bed.counter("tcp.retransmits") == 0


def test_an_empty_message_is_no_frame_and_no_end(bed: Bed) -> None:
    bed.offer(b"", arp(1), b"")
    bed.settle()
    assert bed.frames_up() == [arp(1)]
    assert bed.counter("ethernet.malformed") == 2


def test_a_message_longer_than_the_mtu_allows_is_dropped_and_the_next_is_not(bed: Bed) -> None:
    tagged = ethernet(bytes(LONGEST - 14), 0x8100)
    bed.offer(arp(1), ethernet(bytes(9000), 0x0806), tagged, arp(2))
    bed.settle()
    assert bed.frames_up() == [arp(1), arp(2)]
    assert bed.counter("ethernet.malformed") == 1
    assert bed.counter("ethernet.unknown_type") == 1


def test_a_frame_that_no_buffer_takes_is_dropped_and_the_next_is_not(bed: Bed) -> None:
    with engine_end(bed) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    bed.mtu = 9000  # of what the bed checks
    for frame in (reply(1), GUEST_MAC + GATEWAY_MAC + b"\x08\x06" + bytes(60_000), reply(2)):
        assert bed.engine.send_frame(frame)
    bed.run_until(lambda: len(bed.inbox) == 2)
    assert bed.counter("link.tx_dropped") == 1


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
@pytest.mark.parametrize("unread", [0, 3])
def test_the_end_of_a_seqpacket_link_comes_after_its_last_frames(readiness: str, unread: int) -> None:
    bed = Bed("seqpacket", readiness)
    bed.reading = False
    for number in range(unread):  # the kernel then tells of a reset before it gives the frames
        bed.engine.send_frame(reply(number))
    bed.turn()
    bed.offer(*(arp(number) for number in range(300)))
    bed.link.close()
    assert bed.expect_upcall(Upcall.LINK_CLOSED)[1:] == ("eof", True)
    assert bed.frames_up() == [arp(number) for number in range(300)]
    assert bed.counter("ethernet.malformed") == 0
    bed.close()


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
def test_a_datagram_link_ends_when_it_is_shut_down(readiness: str) -> None:
    bed = Bed("datagram", readiness)
    bed.offer(arp(1))
    with engine_end(bed) as end:
        end.shutdown(socket.SHUT_RDWR)  # the supervisor found that nobody is at the other end
    assert bed.expect_upcall(Upcall.LINK_CLOSED)[1:] == ("eof", True)
    assert bed.frames_up() == [arp(1)]
    bed.close()


def test_a_datagram_link_breaks_when_the_guest_is_gone_at_the_next_frame_to_it() -> None:
    bed = Bed("datagram")
    bed.reading = False
    bed.link.close()
    bed.engine.send_frame(reply(1))
    assert bed.expect_upcall(Upcall.LINK_CLOSED)[1:] == ("Connection refused", True)
    bed.close()


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
def test_a_guest_that_is_not_connected_has_a_short_queue_and_loses_nothing(readiness: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        guest, link = (stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2))
        guest.bind(str(tmp_path / "guest"))
        guest.setblocking(False)
        link.connect(str(tmp_path / "guest"))
        engine = Engine(
            link.detach(), "messages", MTU, GATEWAY_MAC, wide(GATEWAY_IP), wide("192.168.127.0"), 120,
            readiness=readiness,
        )  # fmt: skip
        stack.callback(engine.close)
        for number in range(200):
            assert engine.send_frame(reply(number))
        engine.run(0)
        queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1
        assert engine.counters()["link.blocked"] == (queue < 200)
        received: list[bytes] = []
        while len(received) < 200:
            engine.run(0.001)
            while frame := attempt(lambda: guest.recv(2000)):
                received.append(frame)
        assert received == [reply(number) for number in range(200)]


def test_an_engine_takes_over_a_link_where_the_last_one_left_it(bed: Bed) -> None:
    heir = engine_end(bed).detach()
    bed.engine.send_frame(reply(1))
    bed.settle()
    bed.engine.close()
    bed.engine = Engine(
        heir, "messages", MTU, GATEWAY_MAC, wide(GATEWAY_IP), wide("192.168.127.0"), 120,
        resync=True, guest_mac=GUEST_MAC,
    )  # fmt: skip
    bed.offer(ethernet(b"", 0x0806, dst=b"\x02\0\0\0\0\1"), arp(2))  # the first is no frame a stream would resume at
    bed.engine.send_frame(reply(2))
    bed.settle()
    assert bed.frames_up() == [arp(2)]
    assert bed.counter("link.rx_frames") == 3
    assert bed.counter("link.resync_bytes") == 0
    assert [bytes(frame) for frame in bed.inbox] == [reply(1), reply(2)]
