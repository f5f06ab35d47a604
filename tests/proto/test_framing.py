"""Frames on a byte stream, cut and joined at every awkward place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.framing import BATCH_SIZE, HEADERS, MAX_FRAME_SIZE, FrameBatch, FrameReader, FramingError, pack

framings = pytest.mark.parametrize("framing", sorted(HEADERS))


def feed(reader: FrameReader, data: bytes) -> list[bytes]:
    reader.space()[: len(data)] = data
    return [bytes(frame) for frame in reader.received(len(data))]


@framings
def test_frames_travel_behind_their_length(framing: str) -> None:
    expected = {"stream32": b"\0\0\0\x03abc", "stream16": b"\x03\0abc"}[framing]
    assert pack(b"abc", framing) == expected


@framings
@given(frames=st.lists(st.binary(max_size=60)), cuts=st.lists(st.integers(1, 50), min_size=1))
def test_reader_gives_the_same_frames_wherever_the_stream_is_cut(
    framing: str, frames: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(pack(frame, framing) for frame in frames)
    reader, seen, position, turn = FrameReader(framing), [], 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        seen += feed(reader, stream[position : position + size])
        position, turn = position + size, turn + 1
    assert seen == frames


def test_reader_takes_the_longest_frame_and_always_has_space() -> None:
    reader = FrameReader()
    longest = bytes(MAX_FRAME_SIZE)
    stream = pack(longest) * 3
    frames = []
    while stream:
        space = len(reader.space())
        assert space >= BATCH_SIZE - 4
        frames += feed(reader, stream[:space])
        stream = stream[space:]
    assert frames == [longest] * 3


def test_reader_refuses_a_length_over_the_limit() -> None:
    with pytest.raises(FramingError, match="frame length 131073 is over the limit of 131072"):
        feed(FrameReader(), (MAX_FRAME_SIZE + 1).to_bytes(4, "big"))


def fill(batch: FrameBatch, frames: list[bytes]) -> None:
    """As from a tap device on which these frames wait; those that do not fit stay."""

    def readv(buffers: list[memoryview]) -> int:
        if not frames:
            raise BlockingIOError
        frame = frames.pop(0)
        buffers[0][: len(frame)] = frame
        return len(frame)

    batch.fill(readv)


@framings
def test_batch_gives_what_pack_gives_and_forgets_what_was_sent(framing: str) -> None:
    batch = FrameBatch(framing)
    assert not batch
    fill(batch, [b"first", b""])
    fill(batch, [b"third"])
    stream = b"".join(pack(frame, framing) for frame in (b"first", b"", b"third"))
    assert bytes(batch.unsent()) == stream
    batch.sent(4)
    assert bytes(batch.unsent()) == stream[4:]
    batch.sent(len(stream) - 4)
    assert not batch


def test_batch_takes_the_longest_frame_until_it_is_full() -> None:
    batch, frames = FrameBatch(), [bytes(MAX_FRAME_SIZE)] * 3
    fill(batch, frames)
    assert len(frames) == 1
    assert len(batch.unsent()) == 2 * (4 + MAX_FRAME_SIZE)


def test_batch_leaves_out_a_frame_that_is_too_long_for_its_framing() -> None:
    batch = FrameBatch("stream16")
    fill(batch, [bytes(65_536), bytes(65_535)])
    assert bytes(batch.unsent()) == pack(bytes(65_535), "stream16")


def test_batch_keeps_what_it_has_when_reading_fails() -> None:
    batch = FrameBatch()
    fill(batch, [b"first"])

    def gone(_: list[memoryview]) -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        batch.fill(gone)
    assert bytes(batch.unsent()) == pack(b"first")


@framings
def test_reader_says_what_is_no_whole_frame_yet(framing: str) -> None:
    reader = FrameReader(framing)
    assert feed(reader, pack(b"whole", framing) + pack(b"cut", framing)[:-1]) == [b"whole"]
    assert reader.rest() == pack(b"cut", framing)[:-1]
