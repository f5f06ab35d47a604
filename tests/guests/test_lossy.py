from __future__ import annotations

import math

import pytest

from tests.guests.lossy import Impairment, Line, Tally

FRAMES = [number.to_bytes(2, "big") for number in range(10_000)]


def carried(impairment: Impairment, name: str = "line") -> tuple[list[bytes], Tally]:
    """What comes out when a frame goes in every 0.1 ms."""
    line, output = Line(impairment, name), bytearray()
    for number, frame in enumerate(FRAMES):
        now = number / 10_000
        line.take(frame, now)
        output += line.due(now)
    output += line.due(math.inf)
    assert line.size == 0
    return [bytes(output[at : at + 2]) for at in range(0, len(output), 2)], line.tally


def test_a_line_without_impairment_changes_nothing() -> None:
    assert carried(Impairment()) == (FRAMES, Tally(frames=len(FRAMES)))


@pytest.mark.parametrize(
    ("impairment", "kind"),
    [
        (Impairment(loss=0.03), "lost"),
        (Impairment(duplication=0.03), "duplicated"),
        (Impairment(reordering=0.03), "reordered"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_impairment_befalls_the_share_of_frames_that_was_asked_for(impairment: Impairment, kind: str) -> None:
    output, tally = carried(impairment)
    befallen = tally.lost + tally.duplicated + tally.reordered
    assert getattr(tally, kind) == befallen == pytest.approx(300, rel=0.2)
    assert len(output) == len(FRAMES) - tally.lost + tally.duplicated
    assert (output == sorted(output)) is (kind != "reordered")


def test_the_same_seed_gives_the_same_line_and_each_direction_its_own() -> None:
    bad = Impairment(loss=0.1, duplication=0.1, reordering=0.1)
    assert carried(bad) == carried(bad)
    assert carried(bad) != carried(bad, "other")


def test_frames_come_out_when_their_delay_is_over() -> None:
    line = Line(Impairment(delay=0.002), "line")
    line.take(b"frame", 1.0)
    assert line.due(1.001) == b""
    assert line.next_due == 1.002
    assert line.due(1.002) == b"frame"
    assert line.next_due == math.inf
