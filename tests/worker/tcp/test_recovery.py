"""Loss recovery: fast retransmit, NewReno without SACK (RFC 5681, 6582), recovery with SACK (RFC 2018, 6675)."""

from __future__ import annotations

import pytest

from tests.worker.tcp.guest import FIN, MSS, NO_SACK, OFFERS, Guest, Options, body, dialling
from worker.tcp.connection import Congestion, Event, State

Ranges = list[tuple[int, int]]


def segment(number: int, count: int = 1) -> tuple[int, int]:
    """The range of the stream that a segment has, counted from 0, or several in a row."""
    return 1 + number * MSS, 1 + (number + count) * MSS


def sending(isn: int, options: Options = OFFERS, segments: int = 10) -> Guest:
    """Ten segments in flight and more to send."""
    guest = dialling(isn, options)
    guest.window = 8000
    guest.says()
    guest.connection.send(body(segments * MSS))
    assert len(guest.hears()) == min(segments, 10)
    return guest


# --- without SACK


def test_the_third_duplicate_acknowledgment_brings_the_segment_again(isn: int) -> None:
    guest = sending(isn, NO_SACK)
    for _ in range(2):
        assert Event.RECOVERY not in guest.says()
        assert guest.hears() == []
    assert Event.RECOVERY in guest.says()
    assert guest.hears_data() == [segment(0)]
    assert guest.congestion() is Congestion.RECOVERY
    assert (guest.connection.ssthresh, guest.connection.cwnd) == (5 * MSS, 8 * MSS)
    guest.says(ack=10_001)
    assert guest.congestion() is Congestion.OPEN
    assert guest.connection.cwnd <= 5 * MSS


def test_further_duplicates_let_new_segments_out(isn: int) -> None:
    guest = sending(isn, NO_SACK, segments=20)
    for _ in range(3):
        guest.says()
    guest.hears()
    new: Ranges = []
    for _ in range(6):
        guest.says()
        new += guest.hears_data()
    assert new == [segment(number) for number in range(10, 14)]


def test_a_partial_acknowledgment_brings_the_next_hole(isn: int) -> None:
    guest = sending(isn, NO_SACK)
    for _ in range(3):
        guest.says()
    repeated = guest.hears_data()
    for ack in (3001, 7001, 9001):
        guest.says(ack=ack)
        repeated += guest.hears_data()
    assert repeated == [segment(0), segment(3), segment(7), segment(9)]
    assert guest.congestion() is Congestion.RECOVERY
    guest.says(ack=10_001)
    assert guest.congestion() is Congestion.OPEN


def test_duplicates_left_over_from_a_recovery_start_no_other(isn: int) -> None:
    guest = sending(isn, NO_SACK, segments=40)
    guest.waits_for_timer()
    guest.hears()
    guest.says(ack=10_001)
    in_flight = guest.hears_data()
    assert in_flight
    for _ in range(6):
        guest.says(ack=10_001)
    assert segment(10) not in guest.hears_data(), "RFC 6582 3.2 step 1: the duplicates tell of what was sent twice"


def test_what_is_not_a_duplicate_is_not_counted_as_one(isn: int) -> None:
    guest = sending(isn, NO_SACK)
    for number in range(6):
        guest.says(body(10, 1 + 10 * number), seq=1 + 10 * number)
        guest.says(seq=11 + 10 * number, window=7000 - number)
    assert guest.congestion() is Congestion.OPEN


# --- with SACK


def test_three_segments_beyond_a_hole_bring_it_again_without_three_duplicates(isn: int) -> None:
    guest = sending(isn)
    assert Event.RECOVERY in guest.says(sack=[segment(1, 3)])
    assert guest.hears_data() == [segment(0)]
    assert guest.congestion() is Congestion.RECOVERY
    assert guest.connection.ssthresh == 5 * MSS
    assert Event.RECOVERY not in guest.says(sack=[segment(1, 4)])


def test_reordering_by_less_than_three_segments_brings_nothing_again(isn: int) -> None:
    guest = sending(isn)
    guest.says(sack=[segment(4)])
    guest.says(sack=[segment(4, 2)])
    assert guest.hears() == []
    assert guest.congestion() is Congestion.OPEN
    guest.says(sack=[segment(4, 3)])
    assert guest.hears_data()[0] == segment(0)


def test_every_hole_that_counts_as_lost_is_filled_and_only_once(isn: int) -> None:
    guest = sending(isn)
    repeated: Ranges = []
    arrived = [(2, 1), (4, 2), (7, 3)]
    for known in range(1, 4):
        blocks = [segment(*run) for run in arrived[:known]]
        guest.says(sack=list(reversed(blocks)))
        repeated += guest.hears_data()
    for _ in range(4):
        guest.says(sack=[segment(7, 3), segment(4, 2), segment(2)])
        repeated += guest.hears_data()
    assert sorted(repeated) == [(1, 1001), (1001, 2001), (3001, 4001), (6001, 7001)]
    guest.says(ack=10_001)
    assert guest.congestion() is Congestion.OPEN
    assert guest.connection.memory_in_use == 0


def test_new_segments_go_out_in_recovery_as_the_pipe_drains(isn: int) -> None:
    guest = sending(isn, segments=20)
    sent: Ranges = []
    for count in range(1, 10):
        guest.says(sack=[segment(1, count)])
        sent += guest.hears_data()
    assert sent[0] == segment(0)
    assert sent[1:] == [segment(number) for number in range(10, 10 + len(sent) - 1)]
    assert len(sent) - 1 == 4, "half of the flight: one of ten is lost, nine have left the network"


def test_a_hole_near_the_end_is_filled_before_the_timeout(isn: int) -> None:
    guest = sending(isn)
    guest.says(sack=[segment(1, 3)])
    repeated = guest.hears_data()
    guest.says(sack=[segment(9), segment(1, 7)])
    repeated += guest.hears_data()
    guest.says(ack=8001, sack=[segment(9)])
    repeated += guest.hears_data()
    assert repeated == [segment(0), segment(8)], "RFC 6675 NextSeg rule 3"


def test_a_lost_retransmission_is_left_to_the_timeout(isn: int) -> None:
    guest = sending(isn)
    guest.says(sack=[segment(1, 9)])
    assert guest.hears_data() == [segment(0)]
    for _ in range(5):
        guest.says(sack=[segment(1, 9)])
        assert guest.hears_data() == []
    guest.waits_for_timer()
    assert guest.congestion() is Congestion.LOSS
    assert guest.hears_data() == [segment(0)]
    guest.says(ack=10_001)
    assert guest.congestion() is Congestion.OPEN


def test_after_a_timeout_only_what_the_guest_lacks_is_sent_again(isn: int) -> None:
    guest = sending(isn)
    guest.says(sack=[segment(9)])
    guest.waits_for_timer()
    repeated = guest.hears_data()
    ack = 1001
    while ack < 10_001:
        guest.says(ack=ack, sack=[segment(5, 5)] if ack < 5001 else [])
        more = guest.hears_data()
        repeated += more
        ack = more[-1][1] if more and more[-1][1] < 5001 else 10_001
    guest.says(ack=10_001)
    assert repeated == [segment(number) for number in range(5)]


def test_a_guest_that_takes_back_what_it_acknowledged_gets_it_again(isn: int) -> None:
    guest = sending(isn)
    guest.says(sack=[segment(1, 9)])
    guest.hears()
    guest.says(ack=1001)
    repeated: Ranges = []
    ack = 1001
    while ack < 10_001:
        repeated += guest.hears_data()
        if guest.congestion() is not Congestion.LOSS:
            guest.waits_for_timer()
            continue
        ack = repeated[-1][1]
        guest.says(ack=ack)
    assert repeated == [segment(number) for number in range(1, 10)]


def test_a_report_of_duplicates_is_no_sign_of_loss(isn: int) -> None:
    guest = sending(isn, segments=20)
    guest.says(ack=5001)
    guest.hears()
    for number in range(5):
        assert Event.DSACK in guest.says(ack=5001, sack=[segment(number)])
    assert guest.congestion() is Congestion.OPEN, "D-SACK (RFC 2883) tells of what came twice"


def test_duplicates_are_told_from_what_is_new_beyond_the_acknowledgment_too(isn: int) -> None:
    guest = sending(isn)
    assert Event.DSACK not in guest.says(sack=[segment(2)])
    assert Event.DSACK not in guest.says(sack=[segment(4), segment(2)])
    assert Event.DSACK in guest.says(sack=[segment(4), segment(4, 2), segment(2)])


def test_a_fin_in_a_hole_is_sent_again(isn: int) -> None:
    guest = dialling(isn)
    guest.window = 8000
    guest.says()
    guest.connection.send(body(5500))
    guest.connection.finish()
    guest.hears()
    guest.says(ack=5001)
    guest.waits_for_timer()
    (last,) = guest.hears()
    assert (last.seq, len(last.payload), FIN in last.flags) == (5001, 500, True)
    guest.says(ack=5502)
    assert guest.state() is State.FIN_WAIT_2


# --- hostile acknowledgments


@pytest.mark.parametrize(
    "blocks",
    [
        [(5000, 4000)],
        [(0, 1)],
        [(-5000, 3000)],
        [(10_001, 20_001)],
        [(1, 2**31)],
        [(2**31, 2**31 + 5000)],
        [(3001, 3001)],
        [(1, 10_001)],
        [(2001, 4001), (3001, 9001), (1001, 10_002), (0, 0)],
    ],
)
def test_nonsense_in_sack_blocks_neither_stops_nor_loses_anything(isn: int, blocks: Ranges) -> None:
    guest = sending(isn)
    for _ in range(6):
        guest.says(sack=blocks)
        guest.hears()
    repeated = 0
    for _ in range(5):
        guest.waits_for_timer()
        repeated += segment(0) in guest.hears_data()
    assert repeated == 5
    guest.says(ack=10_001)
    assert guest.connection.in_flight == 0
    assert guest.connection.memory_in_use == 0


def test_more_ranges_than_the_scoreboard_holds_are_forgotten(isn: int) -> None:
    guest = sending(isn)
    for number in range(400):
        guest.says(sack=[(3 + 20 * number, 13 + 20 * number)])
        guest.hears()
    guest.says(ack=10_001)
    assert guest.congestion() is Congestion.OPEN
    assert guest.connection.memory_in_use == 0


def test_thousands_of_duplicates_do_not_inflate_the_window_without_bound(isn: int) -> None:
    guest = sending(isn, NO_SACK, segments=1000)
    for _ in range(5000):
        guest.says()
        guest.hears()
    assert guest.connection.in_flight <= 8000 << 7
    assert guest.connection.cwnd <= (65535 << 7) + MSS, "the largest window there ever was"
    guest.says(ack=(1 + guest.connection.in_flight))
    assert guest.connection.cwnd <= 5 * MSS + MSS


def test_an_acknowledgment_of_what_was_never_sent_changes_nothing(isn: int) -> None:
    guest = sending(isn)
    for ack in (10_002, 1 + 2**30, 2**31):
        assert guest.says(ack=ack) & (Event.ACKED | Event.CLOSED) == Event(0)
    assert guest.connection.in_flight == 10_000
    guest.hears()
    guest.says(ack=10_001)
    assert guest.connection.in_flight == 0


def test_in_recovery_the_host_is_read_for_what_the_pipe_has_room_for(isn: int) -> None:
    guest = sending(isn)
    guest.says(sack=[segment(1, 3)])
    guest.hears()
    assert guest.connection.room == 0
    guest.says(sack=[segment(1, 9)])
    assert guest.connection.room == 4 * MSS, "half the flight, less what was sent again"
    guest.connection.send(body(10 * MSS, 10 * MSS))
    assert guest.hears_data() == [segment(number) for number in range(10, 14)]


def test_a_timeout_in_recovery_does_not_raise_the_threshold_again(isn: int) -> None:
    guest = sending(isn, segments=200)
    for count in range(3, 60):
        guest.says(sack=[segment(1, count)])
        guest.hears()
    assert guest.connection.in_flight > 20 * MSS
    guest.waits_for_timer()
    assert guest.congestion() is Congestion.LOSS
    assert guest.connection.ssthresh == 5 * MSS
