"""Bytes of the link that another process read before the engine had it."""

import pytest

from tests.worker.framebed import Bed, arp
from worker.upcalls import Upcall


def frames(bed: Bed) -> list[bytes]:
    return [upcall[1] for upcall in bed.upcalls if upcall[0] == Upcall.FRAME]


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_a_stream_goes_on_where_the_first_bytes_end(cut: int) -> None:
    bed = Bed("stream16")
    stream = bed.wire(arp(1), arp(2))
    bed.engine.receive(stream[:cut])
    bed.push(stream[cut:])
    bed.run_until(lambda: len(frames(bed)) >= 2)
    assert frames(bed) == [arp(1), arp(2)]
    bed.close()


@pytest.mark.parametrize("framing", ["stream16", "stream32"])
def test_whole_frames_need_nothing_more_to_come(framing: str) -> None:
    bed = Bed(framing)
    bed.engine.receive(bed.wire(arp(1)))
    bed.run_until(lambda: frames(bed))
    bed.close()


def test_an_impossible_length_closes_the_link() -> None:
    bed = Bed("stream32")
    bed.engine.receive(b"\xff\xff\xff\xff")
    bed.turn()
    assert (Upcall.LINK_CLOSED, "frame length 4294967295 is over the limit of 131072", True) in bed.upcalls
    bed.close()


def test_more_than_the_buffer_holds_and_a_second_time_is_refused() -> None:
    bed = Bed("stream16")
    with pytest.raises(ValueError, match="at most 262144"):
        bed.engine.receive(bytes(262145))
    bed.engine.receive(b"\0")
    with pytest.raises(ValueError, match="once"):
        bed.engine.receive(b"\0")
    bed.close()
