"""Frames cut from a stream: split anywhere, garbled, ended, and found again after a worker's death."""

import random
import socket
from collections.abc import Iterator

import pytest

from tests.worker.framebed import (
    BROADCAST,
    GATEWAY_IP,
    GATEWAY_MAC,
    GUEST_MAC,
    TCP,
    UDP,
    Bed,
    arp,
    ethernet,
    udp,
    wide,
)
from tests.worker.guest_tcp import GuestTcp
from worker.engine import Engine
from worker.upcalls import Action, Upcall

MAX_FRAME = 131_072
RX_READ = 262_144
FORMS = [(framing, readiness) for framing in ("stream32", "stream16") for readiness in ("epoll", "poll")]


@pytest.fixture(params=FORMS, ids="-".join)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    bed = Bed(*request.param)
    yield bed
    bed.close()


def test_a_frame_may_be_split_at_every_byte(bed: Bed) -> None:
    frames = [arp(1), ethernet(bytes(60), 0x0806), arp(2)]
    wire = bed.wire(*frames)
    for cut in range(len(wire) + 1):
        bed.push(wire[:cut])
        bed.turn()
        bed.push(wire[cut:])
        bed.settle()
        assert bed.frames_up() == frames


def test_a_frame_may_come_byte_by_byte(bed: Bed) -> None:
    for byte in bed.wire(arp(1)):
        bed.push(bytes([byte]))
        bed.turn()
    bed.settle()
    assert bed.frames_up() == [arp(1)]


def test_the_largest_frame_is_taken_however_it_is_cut(one_bed: Bed) -> None:
    # all but its last byte first: what then lies in the buffer is the most there can be, before one more whole read
    largest = one_bed.wire(ethernet(bytes(MAX_FRAME - 14), 0x86DD))
    after = one_bed.wire(ethernet(bytes(MAX_FRAME - 14), 0x86DD)) * 2
    one_bed.push(largest[:-1])
    one_bed.turn()
    one_bed.link.send(largest[-1:] + after)
    one_bed.settle()
    assert one_bed.counter("ethernet.unknown_type") == 3


@pytest.mark.parametrize("length", [MAX_FRAME + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_garbled_length_closes_the_link_and_says_so(length: int) -> None:
    bed = Bed("stream32")
    bed.push(bed.wire(arp(1)) + length.to_bytes(4, "big") + bytes(100))
    assert bed.expect_upcall(Upcall.LINK_CLOSED) == (
        Upcall.LINK_CLOSED,
        f"frame length {length} is over the limit of 131072",
        True,
    )
    assert bed.frames_up() == [arp(1)]
    assert bed.counter("link.garbled") == 1
    bed.turn()
    bed.turn()
    assert bed.counter("syscalls.link_recv") == 1
    bed.close()


def test_frames_shorter_than_a_header_are_counted(bed: Bed) -> None:
    bed.send(*(bytes(n) for n in range(14)))
    bed.settle()
    assert bed.counter("ethernet.malformed") == 14


def test_the_end_of_the_link_comes_after_its_last_frames(bed: Bed) -> None:
    bed.link.send(bed.wire(*(arp(n) for n in range(100))))
    bed.link.close()
    bed.reading = False
    assert bed.expect_upcall(Upcall.LINK_CLOSED)[1:] == ("eof", True)
    assert bed.frames_up() == [arp(n) for n in range(100)]


def test_a_link_that_breaks_while_the_engine_sends_is_told_once(bed: Bed) -> None:
    bed.link.close()
    bed.reading = False
    bed.engine.send_frame(arp())
    bed.expect_upcall(Upcall.LINK_CLOSED)
    bed.engine.send_frame(arp())
    bed.turn()
    bed.turn()
    assert bed.upcalls == []


@pytest.mark.parametrize(("framing", "readiness"), FORMS)
def test_a_stream_is_found_again_from_every_byte_of_it(framing: str, readiness: str) -> None:
    rng = random.Random(5)
    frames = [arp(1), ethernet(rng.randbytes(90), 0x86DD), udp(rng.randbytes(40), 9), arp(2)]
    probe = Bed(framing, readiness)
    wire = probe.wire(*frames)
    starts = [len(probe.wire(*frames[:n])) for n in range(len(frames) + 1)]
    probe.close()
    for cut in range(starts[-2] + 1):
        bed = Bed(framing, readiness, resync=True, guest_mac=GUEST_MAC)
        bed.judge(UDP, Action.DROP, dport=9)
        bed.push(wire[cut:])
        bed.settle()
        whole = frames[next(n for n, start in enumerate(starts) if start >= cut) :]
        assert bed.counter("link.resync_bytes") == next(start for start in starts if start >= cut) - cut
        assert bed.counter("link.rx_frames") == len(whole) + 1  # and the marker
        bed.close()


def test_a_stream_is_found_again_when_the_next_frames_come_late() -> None:
    bed = Bed(resync=True, guest_mac=GUEST_MAC)
    bed.push(bytes(50))
    bed.turn()
    wire = bed.wire(arp(1))
    bed.push(wire[:20])
    bed.turn()
    bed.push(wire[20:])
    bed.settle()
    assert bed.frames_up() == [arp(1)]
    bed.close()


def test_a_stream_in_which_no_frame_is_found_is_given_up() -> None:
    bed = Bed(resync=True, guest_mac=GUEST_MAC)
    noise = bytes([0xEE]) * 65_536
    for _ in range(18):
        bed.push(noise)
        bed.turn()
    reason, by_guest = bed.expect_upcall(Upcall.LINK_CLOSED)[1:]
    assert (reason, by_guest) == ("no frame boundary found after the worker's restart", False)
    bed.close()


def test_what_python_sends_is_framed_and_refused_when_it_cannot_be(bed: Bed) -> None:
    frame = GUEST_MAC + GATEWAY_MAC + b"\x08\x06" + bytes(28)
    assert bed.engine.send_frame(frame)
    bed.run_until(lambda: bed.inbox)
    limit = MAX_FRAME if bed.framing == "stream32" else 65_535
    for length in (13, limit + 1):
        with pytest.raises(ValueError, match=f"frame of {length} bytes"):
            bed.engine.send_frame(bytes(length))


def test_a_guest_that_does_not_read_costs_counted_drops_of_replies(bed: Bed) -> None:
    frame = GUEST_MAC + GATEWAY_MAC + b"\x08\x06" + bytes(1400)
    bed.reading = False
    sent = 0
    while bed.engine.send_frame(frame):
        sent += 1
        bed.turn()
        assert sent < 10_000
    assert bed.counter("link.tx_dropped") == 1
    bed.reading = True
    bed.run_until(lambda: len(bed.inbox) == sent)


def test_frames_for_others_are_counted_and_groups_are_taken(bed: Bed) -> None:
    bed.send(ethernet(b"", 0x0806, dst=b"\x02\0\0\0\0\1"), ethernet(b"", 0x0806, dst=BROADCAST))
    bed.send(ethernet(b"", 0x0806, src=b"\x03\0\0\0\0\1"))
    bed.settle()
    assert bed.counter("ethernet.not_for_gateway") == 1
    assert bed.counter("ethernet.malformed") == 1  # a source that is a group
    assert len(bed.frames_up()) == 1


def test_a_link_with_two_byte_lengths_takes_no_mtu_that_does_not_fit() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="mtu 65522: expected 576 to 65521"):
        Engine(theirs.fileno(), "stream16", 65_522, GATEWAY_MAC, wide(GATEWAY_IP), wide("192.168.127.0"), 120)
    bed = Bed("stream16", mtu=65_521)
    server = bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    GuestTcp(bed).open()
    bed.close()
