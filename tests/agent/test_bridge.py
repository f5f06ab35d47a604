"""The bridge between a tap device and a link, with socket pairs in the place of both."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from agent.bridge import Bridge, TapGone
from agent.endpoint import Link
from proto.framing import FrameReader, FramingError, pack


class Bed:
    """A bridge that runs in a thread, with the far ends of its tap and its link."""

    def __init__(self) -> None:
        self.tap, self._tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link, self._link = socket.socketpair()
        self._tap.setblocking(False)
        self.tap.settimeout(5)
        self.link.settimeout(5)
        self.bridge = Bridge(self._tap.fileno(), Link.of_socket(self._link), "stream32")
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.bridge.run()
        except (OSError, FramingError, TapGone) as error:
            self.error = error

    def join(self) -> Exception | None:
        """Wait for the end of the link's life; what it ended with."""
        self._thread.join(5)
        assert not self._thread.is_alive()
        return self.error

    def close(self) -> None:
        self.link.close()
        self.join()
        for end in (self.tap, self._tap, self._link):
            end.close()


@pytest.fixture
def bed() -> Iterator[Bed]:
    with contextlib.closing(Bed()) as bed:
        yield bed


def frames_of(link: socket.socket, count: int) -> list[bytes]:
    reader, frames = FrameReader(), list[bytes]()
    while len(frames) < count:
        size = link.recv_into(reader.space())
        assert size, frames
        frames += [bytes(frame) for frame in reader.received(size)]
    return frames


def test_frames_pass_both_ways(bed: Bed) -> None:
    bed.tap.send(b"from the guest")
    assert frames_of(bed.link, 1) == [b"from the guest"]
    bed.link.sendall(pack(b"to the guest") + pack(b"again")[:3])
    assert bed.tap.recv(100) == b"to the guest"
    bed.link.sendall(pack(b"again")[3:])
    assert bed.tap.recv(100) == b"again"


def test_a_link_that_does_not_read_stops_the_tap_and_nothing_is_lost(bed: Bed) -> None:
    sent = 0
    bed.tap.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while sent < 5000:
            bed.tap.send(sent.to_bytes(2, "big") * 700)
            sent += 1
    assert 100 < sent < 5000
    assert frames_of(bed.link, sent) == [number.to_bytes(2, "big") * 700 for number in range(sent)]


def test_the_end_of_the_link_ends_the_bridge(bed: Bed) -> None:
    bed.link.shutdown(socket.SHUT_WR)
    assert bed.join() is None


def test_a_length_over_the_limit_ends_the_bridge(bed: Bed) -> None:
    bed.link.sendall(b"\xff\xff\xff\xff")
    assert isinstance(bed.join(), FramingError)


def test_a_tap_that_is_taken_away_ends_the_bridge(bed: Bed) -> None:
    bed.tap.close()
    assert isinstance(bed.join(), TapGone)
