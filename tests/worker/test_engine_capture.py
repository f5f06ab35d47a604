"""Captures: copies of all frames both ways, at nobody's cost but the capture's own."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.captures import BUFFER_HEADER, BUFFER_SIZE
from tests.guests.pcapng import FROM_GUEST, TO_GUEST, Captured, packets
from tests.worker.framebed import GATEWAY_MAC, GUEST_MAC, LINKS, TCP, Bed, arp, ethernet
from tests.worker.guest_tcp import GuestTcp

FORMS = [(link, readiness) for link in LINKS for readiness in ("epoll", "poll")]


class Capture:
    """A capture's reader."""

    def __init__(self, bed: Bed, interface: int = 0, snaplen: int = 0) -> None:
        self.bed = bed
        ours, theirs = socket.socketpair()
        self.sock = bed.keep(ours)
        bed.engine.add_capture(theirs.detach(), interface, snaplen)
        self.data = b""

    def read(self) -> list[Captured]:
        """All that is there now, and all before."""
        while True:
            self.bed.turn()
            try:
                piece = self.sock.recv(1 << 20)
            except BlockingIOError:
                return packets(self.data)
            self.data += piece


@pytest.fixture(params=FORMS, ids="-".join)
def any_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    bed = Bed(*request.param)
    yield bed
    bed.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    bed = Bed()
    yield bed
    bed.close()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def to_guest(data: bytes) -> bytes:
    """A frame that the engine does not look into."""
    return ethernet(data, 0x88B5, src=GATEWAY_MAC, dst=GUEST_MAC)


def test_frames_of_both_directions_are_captured_as_they_cross_the_link(any_bed: Bed) -> None:
    any_bed.settle()  # frames before it are not captured
    capture = Capture(any_bed, interface=3)
    began = time.time()
    sent = [arp(number) for number in range(5)]
    any_bed.send(*sent)
    any_bed.settle()
    answered = [to_guest(noise(size)) for size in (46, 47, 48, 49, 1500)]
    for frame in answered:
        assert any_bed.engine.send_frame(frame)
    seen = capture.read()
    assert [packet.frame for packet in seen if packet.direction == TO_GUEST] == answered
    assert [packet.frame for packet in seen if packet.direction == FROM_GUEST][:5] == sent
    assert {(packet.interface, packet.lost) for packet in seen} == {(3, 0)}
    assert all(packet.length == len(packet.frame) for packet in seen)
    assert all(began - 1 < packet.time < time.time() + 1 for packet in seen)
    assert any_bed.counter("capture.frames") == len(seen)


@pytest.mark.parametrize("link", LINKS)
def test_segments_gathered_from_a_ring_are_captured_whole(link: str) -> None:
    bed = Bed(link)
    server = bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    guest = GuestTcp(bed).open()
    host = bed.accept(server)
    capture = Capture(bed)
    data = noise(30_000)
    host.send(data)
    bed.run_until(lambda: len(bed.inbox) > 0)
    seen = [packet for packet in capture.read() if packet.direction == TO_GUEST and len(packet.frame) > 66]
    captured = b"".join(packet.frame[34 + (packet.frame[46] >> 4) * 4 :] for packet in seen)
    assert captured
    assert data.startswith(captured)
    assert {packet.frame[:12] for packet in seen} == {GUEST_MAC + GATEWAY_MAC}
    assert guest.next
    bed.close()


def test_a_frame_that_python_hands_back_is_captured_once(bed: Bed) -> None:
    capture = Capture(bed)
    frame = arp(1)
    bed.send(frame)
    bed.settle()
    bed.engine.inject(frame)
    assert [packet.frame for packet in capture.read()].count(frame) == 1


def test_a_capture_may_take_only_the_beginning_of_frames(bed: Bed) -> None:
    whole, short = Capture(bed), Capture(bed, snaplen=21)
    bed.send(arp(1))
    bed.settle()
    first, cut = whole.read()[0], short.read()[0]
    assert first.frame == arp(1)
    assert (cut.frame, cut.length) == (arp(1)[:21], len(arp(1)))


def test_a_reader_that_does_not_read_loses_frames_and_the_guest_none(bed: Bed) -> None:
    stalled, prompt = Capture(bed), Capture(bed)
    stalled.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    frames = 3 * BUFFER_SIZE // 1500
    for _ in range(frames // 50):
        for number in range(50):
            assert bed.engine.send_frame(to_guest(number.to_bytes(2, "big") + noise(1498)))
        prompt.read()
    assert len(bed.inbox) == len(prompt.read()) == frames // 50 * 50
    assert {packet.lost for packet in prompt.read()} == {0}
    assert bed.counter("capture.dropped") > 0
    assert len(stalled.data) == 0
    kept = len(stalled.read())
    assert bed.engine.send_frame(to_guest(noise(46)))
    seen = stalled.read()
    assert len(seen) == kept + 1
    assert seen[-1].lost == bed.counter("capture.dropped") == frames // 50 * 50 - kept
    assert bed.engine.send_frame(to_guest(noise(46)))
    assert stalled.read()[-1].lost == 0


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
def test_what_waits_for_a_slow_reader_comes_without_further_traffic(readiness: str) -> None:
    bed = Bed(readiness=readiness)
    capture = Capture(bed)
    for _ in range(500):
        assert bed.engine.send_frame(to_guest(noise(1500)))
    bed.run_until(lambda: bed.counter("link.tx_frames") == len(bed.inbox))
    bed.run_until(lambda: len(capture.read()) == 500)
    bed.close()


def test_a_reader_that_hangs_up_ends_its_capture_and_no_other(bed: Bed) -> None:
    leaving, staying = Capture(bed), Capture(bed)
    before = len(os.listdir("/proc/self/fd"))
    leaving.sock.close()
    for number in range(3):
        bed.send(arp(number))
        bed.settle()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert [packet.frame for packet in staying.read()][::2] == [arp(number) for number in range(3)]


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
def test_a_reader_that_hangs_up_is_noticed_without_any_traffic(readiness: str) -> None:
    bed = Bed(readiness=readiness)
    capture = Capture(bed)
    before = len(os.listdir("/proc/self/fd"))
    capture.read()
    capture.sock.close()
    bed.run_until(lambda: len(os.listdir("/proc/self/fd")) == before - 2)
    bed.close()


def test_a_file_is_written_as_it_goes(bed: Bed, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "pcapng", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    bed.engine.add_capture(fd, 0)
    for number in range(3):
        bed.send(arp(number))
        bed.settle()
        frames = [packet.frame for packet in packets((tmp_path / "pcapng").read_bytes())]
        assert frames[::2] == [arp(n) for n in range(number + 1)]


@pytest.fixture
def buffer() -> Iterator[int]:
    """As the supervisor makes it."""
    fd = os.memfd_create("capture")
    os.ftruncate(fd, BUFFER_SIZE)
    yield fd
    os.close(fd)


def captured_to(bed: Bed, reader: socket.socket, buffer: int) -> None:
    bed.engine.add_capture(os.dup(reader.fileno()), 0, buffer_fd=os.dup(buffer))


@pytest.mark.parametrize("room", [1, 4096, 100_000])
def test_another_engine_goes_on_with_the_block_that_the_reader_has_a_part_of(buffer: int, room: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        ours.setblocking(False)
        theirs.setblocking(False)
        sent, data = [], b""
        for generation in range(3):
            bed = Bed()
            captured_to(bed, theirs, buffer)
            for number in range(100):
                sent.append(to_guest(bytes([generation, number]) + noise(1498)))
                assert bed.engine.send_frame(sent[-1])
            bed.turn()
            bed.engine.close()
            bed.end()
            with contextlib.suppress(BlockingIOError):
                data += ours.recv(10_000)  # a block is cut here, or in the socket
        bed = Bed()
        captured_to(bed, theirs, buffer)
        while BUFFER_HEADER.unpack(os.pread(buffer, BUFFER_HEADER.size, 0))[1]:
            bed.turn()
            with contextlib.suppress(BlockingIOError):
                data += ours.recv(1 << 20)
        bed.close()
        with contextlib.suppress(BlockingIOError):
            while piece := ours.recv(1 << 20):
                data += piece
    assert [packet.frame for packet in packets(data)] == sent


@pytest.mark.parametrize("header", [(0, 0, 0, 1), (2, 1, 0, 0), (0, BUFFER_SIZE, 0, 0), (1 << 63, 1 << 63, 0, 0)])
def test_a_buffer_in_which_nobody_knows_what_was_written_is_refused(
    bed: Bed, buffer: int, header: tuple[int, ...]
) -> None:
    os.pwrite(buffer, BUFFER_HEADER.pack(*header), 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(OSError, match="Bad message"):
            bed.engine.add_capture(theirs.fileno(), 0, buffer_fd=buffer)
        os.ftruncate(buffer, 4096)
        with pytest.raises(ValueError, match="buffer"):
            bed.engine.add_capture(theirs.fileno(), 0, buffer_fd=buffer)


def test_a_descriptor_that_is_none_is_refused(bed: Bed) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        bed.engine.add_capture(9999, 0)
