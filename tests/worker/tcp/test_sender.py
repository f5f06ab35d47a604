"""Sending: windows, silly windows, probes, retransmission timeouts (RFC 9293 section 3.8, RFC 6298, RFC 6582)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.worker.tcp.guest import (
    ACK,
    MS,
    MSS,
    NO_SACK,
    OFFERS,
    PSH,
    SECOND,
    START,
    Guest,
    Options,
    body,
    called,
    dialling,
)
from worker.tcp.connection import Congestion, Event, State

RING_MAX = 1 << 20


def timed(isn: int, round_trip: int, options: Options = OFFERS) -> Guest:
    """Established, with a known round-trip time."""
    guest = Guest(isn, options)
    guest.connection.hold(guest.syn(), guest.now)
    guest.connection.answer()
    guest.hears()
    guest.waits(round_trip)
    guest.says(timestamp=1 if options.timestamps else None)
    guest.hears()
    return guest


# --- segments and windows


def test_bytes_go_in_full_segments_and_the_last_is_pushed(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(2500))
    heard = guest.hears()
    assert b"".join(segment.payload for segment in heard) == body(2500)
    assert [(s.seq, len(s.payload), PSH in s.flags) for s in heard] == [
        (1, 1000, False),
        (1001, 1000, False),
        (2001, 500, True),
    ]


def test_no_more_is_sent_than_the_guest_s_window_takes(isn: int) -> None:
    guest = dialling(isn)
    guest.says(window=40)
    guest.connection.send(body(9000))
    assert guest.hears_data()[-1] == (4001, 5001), "the 120 bytes left of 40 << 7 are not worth a segment"
    guest.says(ack=5001, window=0)
    assert guest.hears() == []


def test_a_window_is_not_filled_with_crumbs(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(30_000))
    guest.hears()
    guest.says(ack=10_001, window=2)
    assert guest.hears() == [], "256 bytes are no segment and less than half of the largest window"
    guest.says(ack=10_001, window=8)
    assert guest.hears_data() == [(10_001, 11_001)]


def test_the_send_ring_takes_no_more_than_its_size(isn: int) -> None:
    guest = dialling(isn)
    assert guest.connection.send(bytes(RING_MAX + 5)) == RING_MAX
    assert guest.connection.send(b"x") == 0


def test_an_older_segment_does_not_bring_an_older_window_back(isn: int) -> None:
    guest = dialling(isn)
    guest.says(b"abc", window=500)
    guest.says(seq=4, window=400)
    guest.says(seq=1, window=3)
    assert guest.connection.room == min(guest.connection.cwnd, 400 << 7)


def test_a_window_that_shrinks_below_what_is_in_flight_stops_the_sender(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(20_000))
    guest.hears()
    guest.says(ack=1001, window=8)
    assert guest.hears() == []
    guest.says(ack=10_001, window=80)
    assert guest.hears_data()[0] == (10_001, 11_001)


# --- closed windows


def closed_window(isn: int) -> Guest:
    """All sent is acknowledged, more waits, and the guest's window is closed."""
    guest = dialling(isn)
    guest.connection.send(body(12_000))
    guest.hears()
    guest.says(ack=10_001, window=0)
    assert guest.hears() == []
    return guest


def test_a_closed_window_is_probed_ever_more_slowly_for_as_long_as_it_is_answered(isn: int) -> None:
    guest = closed_window(isn)
    times = []
    for _ in range(40):
        assert guest.waits_for_timer() == Event(0)
        probe = guest.hears_one()
        assert (probe.seq, probe.payload, probe.flags) == (10_000, b"", ACK)
        times.append(guest.now)
        guest.says(ack=10_001, window=0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] < SECOND
    assert gaps[-1] == 60 * SECOND


def test_a_window_that_opens_is_used_at_once(isn: int) -> None:
    guest = closed_window(isn)
    guest.waits_for_timer()
    guest.hears()
    assert Event.ACKED in guest.says(ack=10_001, window=500)
    assert guest.hears_data() == [(10_001, 11_001), (11_001, 12_001)]


def test_probing_does_not_slow_down_retransmission_afterwards(isn: int) -> None:
    guest = closed_window(isn)
    for _ in range(10):
        guest.waits_for_timer()
        guest.hears()
        guest.says(ack=10_001, window=0)
    guest.says(ack=10_001, window=500)
    guest.hears()
    assert guest.connection.deadline is not None
    assert guest.connection.deadline - guest.now <= SECOND


def test_a_guest_that_answers_no_probe_is_given_up(isn: int) -> None:
    guest = closed_window(isn)
    probes = 0
    while Event.TIMEOUT not in guest.waits_for_timer():
        guest.hears()
        probes += 1
    assert probes == 15
    assert guest.connection.memory_in_use == 0


def test_a_window_that_stays_small_is_used_after_a_while(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(12_000))
    guest.hears()
    guest.says(ack=10_001, window=4)
    assert guest.hears() == []
    guest.waits_for_timer()
    assert guest.hears_data() == [(10_001, 10_513)], "RFC 9293 3.8.6.2.1 (4): the override timeout"
    guest.says(ack=10_513, window=4)
    guest.waits_for_timer()
    assert guest.hears_data() == [(10_513, 11_025)]


def test_a_window_closed_over_bytes_in_flight_does_not_end_the_connection(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(3000))
    guest.hears()
    for _ in range(40):
        assert guest.waits_for_timer() == Event(0)
        guest.hears()
        guest.says(window=0)
    guest.says(window=500)
    guest.waits_for_timer()
    assert guest.hears_data()[0] == (1, 1001)


# --- the retransmission timeout


def test_what_is_not_acknowledged_is_sent_again_ever_more_slowly_and_given_up(isn: int) -> None:
    guest = timed(isn, 10 * MS)
    guest.connection.send(body(5000))
    guest.hears()
    times = [guest.now]
    while Event.TIMEOUT not in guest.waits_for_timer():
        assert guest.hears_data() == [(1, 1001)]
        times.append(guest.now)
    assert [(at - times[0]) // MS for at in times[:5]] == [0, 200, 600, 1400, 3000]
    assert len(times) == 16
    assert guest.state() is State.CLOSED
    assert guest.connection.memory_in_use == 0


def test_the_timeout_follows_the_round_trip_time_and_its_variance(isn: int) -> None:
    guest = timed(isn, 400 * MS)
    assert (guest.connection.srtt, guest.connection.rto) == (400 * MS, 1200 * MS)
    at = 1
    for _ in range(40):
        guest.connection.send(body(100))
        guest.hears()
        guest.waits(400 * MS)
        at += 100
        guest.says(ack=at)
    assert guest.connection.srtt == 400 * MS
    assert 400 * MS <= guest.connection.rto < 410 * MS


def test_a_retransmitted_segment_is_not_timed_and_the_backoff_stays_until_one_is(isn: int) -> None:
    guest = timed(isn, 50 * MS)
    guest.connection.send(body(1000))
    guest.hears()
    guest.waits_for_timer()
    guest.hears()
    assert guest.connection.rto == 400 * MS
    guest.waits(1 * MS)
    guest.says(ack=1001)
    assert (guest.connection.srtt, guest.connection.rto) == (50 * MS, 400 * MS), "Karn (RFC 6298 3 and 5)"
    guest.connection.send(body(1000))
    guest.hears()
    guest.waits(60 * MS)
    guest.says(ack=2001)
    assert guest.connection.srtt > 50 * MS
    assert guest.connection.rto == 200 * MS


def test_an_echoed_timestamp_measures_even_a_retransmitted_segment(isn: int) -> None:
    guest = timed(isn, 50 * MS, Options(timestamps=True))
    guest.connection.send(body(500))
    guest.hears()
    guest.waits_for_timer()
    (repeat,) = guest.hears()
    assert guest.connection.rto == 400 * MS
    assert repeat.timestamp is not None
    guest.waits(70 * MS)
    guest.says(ack=501, timestamp=2, echo=repeat.timestamp[0])
    assert 50 * MS < guest.connection.srtt < 70 * MS
    assert guest.connection.rto == 200 * MS


@pytest.mark.parametrize("echo", [1, 2**31, 2**32 - 1])
def test_a_nonsensical_echo_is_not_measured(isn: int, echo: int) -> None:
    guest = timed(isn, 50 * MS, Options(timestamps=True))
    guest.connection.send(body(500))
    guest.hears()
    guest.waits_for_timer()
    guest.hears()
    guest.says(ack=501, timestamp=2, echo=echo)
    assert guest.connection.srtt == 50 * MS


def test_a_path_that_became_slower_than_the_timeout_is_measured_in_the_end(isn: int) -> None:
    guest = timed(isn, 10 * MS)
    at = 1
    for _ in range(8):
        guest.connection.send(body(500))
        sent = guest.now
        guest.hears()
        while guest.connection.deadline is not None and guest.connection.deadline < sent + 700 * MS:
            guest.waits_for_timer()
            guest.hears()
        guest.now = sent + 700 * MS
        at += 500
        guest.says(ack=at)
    assert guest.connection.srtt > 200 * MS
    assert guest.connection.rto > 700 * MS


def test_an_acknowledgment_starts_the_timer_again(isn: int) -> None:
    guest = timed(isn, 10 * MS)
    guest.connection.send(body(3000))
    guest.hears()
    guest.waits(150 * MS)
    guest.says(ack=1001)
    assert guest.connection.deadline == guest.now + guest.connection.rto
    guest.says(ack=3001)
    assert guest.connection.in_flight == 0
    assert guest.connection.deadline is not None
    assert guest.connection.deadline > guest.now + SECOND


def test_a_worker_that_stood_still_for_an_hour_does_not_measure_nonsense(isn: int) -> None:
    guest = timed(isn, 10 * MS)
    guest.connection.send(body(1000))
    guest.hears()
    guest.waits(3600 * SECOND)
    guest.says(ack=1001)
    assert 10 * MS <= guest.connection.srtt <= 60 * SECOND
    assert guest.connection.rto <= 60 * SECOND


# --- the congestion window


def test_ten_segments_go_out_before_the_first_acknowledgment(isn: int) -> None:
    for opened in (dialling, called):
        guest = opened(isn)
        guest.says(window=2000)
        guest.connection.send(body(50_000))
        assert len(guest.hears_data()) == 10


def test_slow_start_doubles_the_window_each_round_trip(isn: int) -> None:
    guest = dialling(isn)
    guest.window = 8000
    guest.says()
    guest.connection.send(bytes(400_000))
    sent = [len(guest.hears())]
    at = 1
    for _ in range(3):
        at += sent[-1] * MSS
        guest.says(ack=at)
        sent.append(len(guest.hears()))
    assert sent == [10, 20, 40, 80]


def test_the_congestion_window_does_not_grow_beyond_the_guest_s(isn: int) -> None:
    guest = dialling(isn, Options(window_scale=None))
    at = 1
    for _ in range(60):
        guest.connection.send(bytes(60_000))
        guest.hears()
        at += guest.connection.in_flight
        guest.says(ack=at)
    assert guest.connection.cwnd <= 65535 + 2 * 65535


def test_above_the_threshold_the_window_grows_by_a_segment_each_round_trip(isn: int) -> None:
    guest = dialling(isn)
    guest.window = 8000
    guest.says()
    guest.connection.send(bytes(900_000))
    guest.hears()
    guest.waits_for_timer()
    assert guest.congestion() is Congestion.LOSS
    assert (guest.connection.cwnd, guest.connection.ssthresh) == (MSS, 5 * MSS)
    at = 10_001
    guest.hears()
    guest.says(ack=at)
    assert guest.congestion() is Congestion.OPEN
    windows = []
    for _ in range(14):
        at += len(guest.hears()) * MSS
        guest.says(ack=at)
        windows.append(guest.connection.cwnd // MSS)
    late = windows[-6:]
    assert [later - earlier for earlier, later in pairwise(late)] == [1] * 5


def test_after_a_timeout_everything_is_sent_again_in_slow_start(isn: int) -> None:
    guest = dialling(isn, NO_SACK)
    guest.connection.send(body(10_000))
    guest.hears()
    guest.waits_for_timer()
    sent = guest.hears_data()
    assert sent == [(1, 1001)]
    at = 1001
    while at < 10_001:
        guest.says(ack=at)
        more = guest.hears_data()
        sent += more
        at = more[-1][1]
    assert sent == [(start, start + 1000) for start in range(1, 10_001, 1000)]
    guest.says(ack=at)
    assert guest.congestion() is Congestion.OPEN
    assert guest.connection.memory_in_use == 0


def test_a_second_timeout_does_not_halve_the_threshold_again(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(10_000))
    guest.hears()
    for _ in range(3):
        guest.waits_for_timer()
        guest.hears()
        assert guest.connection.ssthresh == 5 * MSS


def test_a_connection_that_has_sent_four_gigabytes_sends_on(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(1000))
    guest.hears()
    guest.says(ack=1001)
    guest.connection.iss = (guest.peer_isn + 1001) % 2**32
    guest.connection.send(b"12345")
    (segment,) = guest.hears()
    assert (segment.seq, segment.payload) == (1001, b"12345")
    assert guest.connection.unsent == 0
    assert guest.now == START
