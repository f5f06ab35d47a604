"""Tap devices as links: frames with offloads both ways, hostile headers, devices that go away."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from dpkt.tcp import TH_ACK, TH_PUSH

from tests.worker import vnet
from tests.worker.framebed import TCP, UDP, Bed, arp, udp
from tests.worker.guest_tcp import MSS, GuestTcp
from worker.upcalls import Upcall

TCP_CSUM, UDP_CSUM = 16, 6
LONGEST = 65_495
"""Payload of the longest TCP packet without options."""
FORMS = [(link, readiness) for link in ("tap", "tap-vnet") for readiness in ("epoll", "poll")]


@pytest.fixture(params=FORMS, ids="-".join)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    bed = Bed(*request.param)
    yield bed
    bed.close()


@pytest.fixture
def vnet_bed() -> Iterator[Bed]:
    bed = Bed("tap-vnet")
    yield bed
    bed.close()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def long_segment(guest: GuestTcp, data: bytes) -> bytes:
    """As a guest's kernel hands over data that is to be cut into segments, and counted on by the connection."""
    message = vnet.partial(guest.segment(TH_ACK | TH_PUSH, data), TCP_CSUM, MSS)
    guest.next += len(data)
    return message


# --- from the guest


def test_frames_that_wait_are_all_taken_in_one_turn(bed: Bed) -> None:
    frames = [arp(number) for number in range(200)]
    bed.offer(*frames)
    bed.turn()
    assert bed.counter("syscalls.wait") == 1
    assert bed.frames_up() == frames


def test_more_frames_than_one_turn_takes_are_all_taken(bed: Bed) -> None:
    frames = [arp(number) for number in range(700)]
    bed.send(*frames)
    bed.settle()
    assert bed.frames_up() == frames


def test_what_the_guest_left_uncut_arrives_whole_and_is_acknowledged_at_once(vnet_bed: Bed) -> None:
    server = vnet_bed.tcp_server()
    vnet_bed.allow(TCP, server.getsockname()[1])
    guest = GuestTcp(vnet_bed).open()
    host = vnet_bed.accept(server)
    data = noise(5 * LONGEST)
    for start in range(0, len(data), LONGEST):
        vnet_bed.link.send(long_segment(guest, data[start : start + LONGEST]))
        vnet_bed.turn()
    assert vnet_bed.receive(host, len(data)) == data
    while guest.acked < guest.next:
        guest.hear(TH_ACK)
    assert vnet_bed.counter("tcp.rx_segments") == 2 + 5


@pytest.mark.parametrize("flags", [vnet.NEEDS_CSUM, vnet.DATA_VALID, vnet.NEEDS_CSUM | vnet.DATA_VALID])
def test_a_checksum_that_is_said_to_be_undone_or_good_is_not_looked_at(vnet_bed: Bed, flags: int) -> None:
    server = vnet_bed.udp_server()
    vnet_bed.allow(UDP, server.getsockname()[1])
    undone = vnet.partial(udp(b"undone", 80), UDP_CSUM)
    vnet_bed.link.send(bytes([flags]) + undone[1:])
    assert vnet_bed.receive_from(server)[0] == b"undone"


def test_any_other_checksum_is_looked_at(vnet_bed: Bed) -> None:
    server = vnet_bed.udp_server()
    vnet_bed.allow(UDP, server.getsockname()[1])
    undone = vnet.partial(udp(b"undone", 80), UDP_CSUM)
    vnet_bed.link.send(vnet.PLAIN + undone[len(vnet.PLAIN) :])
    vnet_bed.settle()
    assert vnet_bed.counter("udp.bad_checksum") == 1
    vnet_bed.send(udp(b"done", 80))
    assert vnet_bed.receive_from(server)[0] == b"done"


def test_a_frame_that_waits_for_a_verdict_is_still_good_when_it_is_handed_back(vnet_bed: Bed) -> None:
    server = vnet_bed.udp_server()
    vnet_bed.link.send(vnet.partial(udp(b"first", 80), UDP_CSUM))
    *_, frame = vnet_bed.expect_upcall(Upcall.VERDICT)
    vnet_bed.allow(UDP, server.getsockname()[1])
    vnet_bed.engine.inject(frame)
    assert vnet_bed.receive_from(server)[0] == b"first"
    vnet_bed.link.send(vnet.PLAIN + vnet.partial(udp(b"undone", 80), UDP_CSUM)[len(vnet.PLAIN) :])
    vnet_bed.settle()
    assert vnet_bed.counter("udp.bad_checksum") == 1, "only that frame was"


@pytest.mark.parametrize("gso", [2, vnet.GSO_UDP, 4, 5, 0x80 | vnet.GSO_TCPV4, 0xFF])
def test_segmentation_that_was_not_agreed_on_is_dropped(vnet_bed: Bed, gso: int) -> None:
    vnet_bed.link.send(bytes([0, gso]) + vnet.PLAIN[2:] + arp(1))
    vnet_bed.settle()
    assert vnet_bed.counter("ethernet.malformed") == 1
    assert vnet_bed.frames_up() == []


@pytest.mark.parametrize("length", [1, 9, 10, 23])
def test_a_message_without_room_for_a_frame_is_dropped(vnet_bed: Bed, length: int) -> None:
    vnet_bed.link.send(bytes(length))
    vnet_bed.settle()
    assert vnet_bed.counter("ethernet.malformed") == 1


def test_lengths_and_offsets_of_a_header_are_not_believed(vnet_bed: Bed) -> None:
    server = vnet_bed.udp_server()
    vnet_bed.allow(UDP, server.getsockname()[1])
    frame = udp(b"here", 80)
    for fields in (noise(8), b"\xff" * 8, bytes(8)):
        for gso in (vnet.GSO_NONE, vnet.GSO_TCPV4):
            vnet_bed.link.send(bytes([vnet.NEEDS_CSUM, gso]) + fields + frame)
            assert vnet_bed.receive_from(server)[0] == b"here"


# --- to the guest


def test_the_guest_is_handed_many_segments_at_once(vnet_bed: Bed) -> None:
    server = vnet_bed.tcp_server()
    vnet_bed.allow(TCP, server.getsockname()[1])
    guest = GuestTcp(vnet_bed).open()
    host = vnet_bed.accept(server)
    before = vnet_bed.counter("link.tx_frames")
    host.sendall(noise(10 * MSS))
    assert guest.read(10 * MSS) == noise(10 * MSS)
    assert vnet_bed.counter("link.tx_frames") - before <= 2, "the initial window of ten segments is one frame"


def test_without_offloads_segments_are_as_long_as_the_mtu_lets_them(bed: Bed) -> None:
    server = bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    guest = GuestTcp(bed).open()
    host = bed.accept(server)
    host.sendall(noise(100_000))
    assert guest.read(100_000) == noise(100_000)
    assert (bed.counter("link.tx_frames") > 65) == (bed.framing == "tap")


def test_datagrams_whole_and_in_fragments_have_good_checksums(bed: Bed) -> None:
    server = bed.udp_server()
    bed.allow(UDP, server.getsockname()[1])
    bed.send(udp(b"hello", 80))
    _, guest = bed.receive_from(server)
    server.sendto(noise(1000), guest)
    assert bed.expect_udp()[2] == noise(1000)
    server.sendto(noise(4000), guest)
    pieces = [bed.expect(lambda ip: getattr(ip, "p", 0) == UDP) for _ in range(3)]
    assert b"".join(bytes(piece.data) for piece in pieces)[8:] == noise(4000)


def test_a_reset_has_a_good_checksum(bed: Bed) -> None:
    guest = GuestTcp(bed)
    bed.send(guest.segment(TH_ACK))
    guest.hear_reset()


# --- the device


def test_a_link_that_is_full_takes_the_rest_later(bed: Bed) -> None:
    bed.reading = False
    sent = 0
    while not bed.counter("link.blocked"):
        assert bed.engine.send_frame(arp(sent)[6:12] + bytes.fromhex("5a94efe40cdd0806") + sent.to_bytes(1000, "big"))
        sent += 1
        bed.turn()
    bed.reading = True
    bed.run_until(lambda: len(bed.inbox) == sent)
    assert [int.from_bytes(bytes(frame.data), "big") for frame in bed.inbox] == list(range(sent))


def test_the_end_of_the_link_comes_after_its_last_frames(bed: Bed) -> None:
    bed.offer(*(arp(number) for number in range(20)))
    bed.link.close()
    bed.reading = False
    bed.expect_upcall(Upcall.LINK_CLOSED)
    assert bed.frames_up() == [arp(number) for number in range(20)]
