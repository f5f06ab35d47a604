"""Several segments at once to and from a link that cuts and joins them (generic segmentation offload)."""

from __future__ import annotations

from tests.worker.tcp.guest import ACK, FIN, MSS, NO_SACK, OFFERS, PSH, Guest, Options, body, dialling
from worker.tcp.connection import Congestion, State

GSO_MAX = 8 * MSS + 700
"""Eight full segments, and a part of another that is of no use."""


def sending(isn: int, size: int, options: Options = OFFERS) -> Guest:
    """A guest that has been sent what an initial window of ten segments lets out."""
    guest = dialling(isn, options, gso_max=GSO_MAX)
    guest.connection.send(body(size))
    assert guest.hears_data() == [(1, 8 * MSS + 1), (8 * MSS + 1, 10 * MSS + 1)]
    return guest


def test_as_many_full_segments_go_at_once_as_the_link_takes(isn: int) -> None:
    guest = dialling(isn, gso_max=GSO_MAX)
    guest.connection.send(body(9 * MSS + 200))
    heard = guest.hears()
    assert b"".join(segment.payload for segment in heard) == body(9 * MSS + 200)
    assert [(s.seq, len(s.payload), PSH in s.flags) for s in heard] == [
        (1, 8 * MSS, False),
        (8 * MSS + 1, MSS + 200, True),
    ]


def test_a_link_that_takes_less_than_two_segments_gets_one(isn: int) -> None:
    guest = dialling(isn, gso_max=MSS - 1)
    guest.connection.send(body(3 * MSS))
    assert len(guest.hears_data()) == 3


def test_the_initial_congestion_window_is_ten_segments_however_they_are_sent(isn: int) -> None:
    guest = sending(isn, 30 * MSS)
    assert guest.connection.in_flight == guest.connection.cwnd == 10 * MSS
    guest.says(ack=10 * MSS + 1)
    assert guest.connection.cwnd == 20 * MSS
    guest.hears()
    assert guest.connection.in_flight == 20 * MSS


def test_a_smaller_window_lets_only_full_segments_out(isn: int) -> None:
    guest = dialling(isn, gso_max=GSO_MAX)
    guest.says(window=(5 * MSS + 300) // 128)
    guest.connection.send(body(8 * MSS))
    assert guest.hears_data() == [(1, 5 * MSS + 1)], "what is left of the window is a crumb"
    guest.says(ack=3 * MSS + 1, window=3)
    assert guest.hears() == [], "384 bytes, of which more than that are in flight"
    guest.says(ack=5 * MSS + 1, window=(3 * MSS) // 128 + 1)
    assert guest.hears_data() == [(5 * MSS + 1, 8 * MSS + 1)]


def test_a_window_of_less_than_a_segment_is_probed_as_ever(isn: int) -> None:
    guest = dialling(isn, gso_max=GSO_MAX)
    guest.connection.send(body(4 * MSS))
    guest.hears()
    guest.says(ack=4 * MSS + 1, window=4)
    guest.connection.send(body(4 * MSS, 4 * MSS))
    assert guest.hears() == []
    guest.waits_for_timer()
    assert guest.hears_data() == [(4 * MSS + 1, 4 * MSS + 513)], "the timer overrides (RFC 9293 3.8.6.2.1)"


def test_fin_goes_with_the_last_of_the_data(isn: int) -> None:
    guest = dialling(isn, gso_max=GSO_MAX)
    guest.connection.send(body(5 * MSS))
    guest.connection.finish()
    (segment,) = guest.hears()
    assert (len(segment.payload), segment.flags) == (5 * MSS, ACK | PSH | FIN)
    guest.says(ack=5 * MSS + 2)
    assert guest.state() is State.FIN_WAIT_2


def test_part_of_what_was_sent_at_once_may_be_acknowledged(isn: int) -> None:
    guest = sending(isn, 14 * MSS)
    guest.says(ack=2 * MSS + 501)
    assert guest.hears_data() == [(10 * MSS + 1, 14 * MSS + 1)]
    guest.says(ack=14 * MSS + 1)
    assert (guest.connection.in_flight, guest.connection.memory_in_use) == (0, 0)


def test_what_was_lost_in_the_middle_comes_again_one_segment_at_a_time_and_once(isn: int) -> None:
    guest = sending(isn, 20 * MSS)
    guest.says(ack=2 * MSS + 1, sack=[(4 * MSS + 1, 6 * MSS + 1)])
    guest.hears()
    repeated = []
    for sack in ([(4 * MSS + 1, 9 * MSS + 1)], [(4 * MSS + 1, 10 * MSS + 1)], [(4 * MSS + 1, 12 * MSS + 1)]):
        guest.says(ack=2 * MSS + 1, sack=sack)
        repeated += [sent for sent in guest.hears_data() if sent[0] < 10 * MSS]
    assert guest.congestion() is Congestion.RECOVERY
    assert repeated == [(2 * MSS + 1, 3 * MSS + 1), (3 * MSS + 1, 4 * MSS + 1)]


def test_bytes_beyond_a_hole_make_it_lost_not_the_segments_they_came_in(isn: int) -> None:
    guest = sending(isn, 10 * MSS)
    guest.says(sack=[(8 * MSS + 1, 10 * MSS + 1)])
    assert guest.congestion() is Congestion.OPEN, "two segments, as reordering may do (RFC 6675 IsLost)"
    guest.says(sack=[(7 * MSS + 1, 10 * MSS + 1)])
    assert guest.congestion() is Congestion.RECOVERY
    assert guest.hears_data()[0] == (1, MSS + 1)


def test_without_sack_the_third_duplicate_brings_one_segment_again(isn: int) -> None:
    guest = sending(isn, 20 * MSS, NO_SACK)
    for _ in range(3):
        guest.says()
    assert guest.hears_data()[0] == (1, MSS + 1)


def test_after_a_timeout_one_segment_comes_again(isn: int) -> None:
    guest = sending(isn, 10 * MSS)
    guest.waits_for_timer()
    assert guest.hears_data() == [(1, MSS + 1)]
    guest.says(ack=8 * MSS + 1)
    assert guest.hears_data() == [(8 * MSS + 1, 9 * MSS + 1), (9 * MSS + 1, 10 * MSS + 1)]


def test_several_segments_of_the_guest_s_at_once_are_acknowledged_at_once(isn: int) -> None:
    guest = dialling(isn, gso_max=GSO_MAX)
    guest.says(body(5 * MSS))
    (acknowledgment,) = guest.connection.segments(guest.now)
    assert guest.relative(acknowledgment).ack == 5 * MSS + 1
    guest.says(body(MSS, 5 * MSS), seq=5 * MSS + 1)
    assert guest.connection.segments(guest.now) == []
    assert guest.connection.ack_deadline is not None, (
        "one segment's acknowledgment may wait for data (RFC 9293 3.8.6.3)"
    )
