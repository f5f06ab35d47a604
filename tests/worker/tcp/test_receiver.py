"""Segments from the guest: order, windows, SACK, timestamps, and what is refused (RFC 9293, 7323, 2018, 5961)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.tcp.guest import (
    ACK,
    FIN,
    MODULUS,
    MS,
    MSS,
    NO_SACK,
    RST,
    SYN,
    Guest,
    Options,
    body,
    dialling,
)
from worker.tcp.connection import Event, State
from worker.wire.headers import Flag

STAMPED = Options(timestamps=True)
DAY = 86_400_000_000


def offers(guest: Guest, start: int, end: int, timestamp: int | None = None) -> Event:
    """Send the bytes [start, end) of the stream."""
    return guest.says(body(end - start, start), seq=start, timestamp=timestamp)


# --- order


def test_bytes_in_order_are_delivered_and_acknowledged(isn: int) -> None:
    guest = dialling(isn)
    for start in range(1, 5001, 500):
        assert Event.DATA in offers(guest, start, start + 500)
    assert guest.connection.received == body(5000, 1)
    assert [segment.ack for segment in guest.hears()] == [5001]


def test_bytes_behind_a_gap_wait_for_it_and_are_reported_newest_first(isn: int) -> None:
    guest = dialling(isn)
    for start in (3001, 1001, 5001, 7001):
        assert not offers(guest, start, start + 1000) & (Event.DATA | Event.RING)
    report = guest.hears_one()
    assert report.ack == 1
    assert report.sack == ((7001, 8001), (1001, 2001), (3001, 4001))
    assert guest.connection.received == b""
    assert Event.RING in offers(guest, 1, 1001)
    assert guest.connection.received == body(2000, 1)
    report = guest.hears_one()
    assert report.ack == 2001
    assert report.sack[0] == (7001, 8001)
    offers(guest, 2001, 7001)
    assert guest.connection.received == body(8000, 1)
    last = guest.hears_one()
    assert (last.ack, last.sack) == (8001, ())
    assert guest.connection.memory_in_use == 0


def test_neighbours_behind_a_gap_are_reported_as_one_range(isn: int) -> None:
    guest = dialling(isn)
    for start in (2001, 4001, 3001):
        offers(guest, start, start + 1000)
    assert guest.hears_one().sack == ((2001, 5001),)


def test_a_guest_without_sack_gets_a_duplicate_ack_for_each_segment_behind_the_gap(isn: int) -> None:
    guest = dialling(isn, NO_SACK)
    for start in (1001, 2001, 3001):
        offers(guest, start, start + 1000)
    assert [(segment.ack, segment.sack) for segment in guest.hears()] == [(1, ())] * 3


def test_bytes_that_overlap_are_taken_once(isn: int) -> None:
    guest = dialling(isn)
    offers(guest, 1, 1001)
    assert Event.DATA in offers(guest, 501, 1501)
    offers(guest, 2001, 3001)
    offers(guest, 1801, 2501)
    offers(guest, 1001, 2101)
    assert guest.connection.received == body(3000, 1)
    assert guest.hears()[-1].ack == 3001


def test_a_duplicate_is_acknowledged_again_and_not_delivered_again(isn: int) -> None:
    guest = dialling(isn)
    offers(guest, 1, 1001)
    guest.hears()
    assert not offers(guest, 1, 1001) & Event.DATA
    assert guest.hears_one().ack == 1001
    assert guest.connection.received == body(1000, 1)


def test_more_gaps_than_are_kept_are_dropped_and_nothing_is_lost_of_the_others(isn: int) -> None:
    guest = dialling(isn)
    for gap in range(16):
        assert not offers(guest, 101 + 200 * gap, 201 + 200 * gap) & Event.DROPPED
    assert Event.DROPPED in offers(guest, 101 + 200 * 16, 201 + 200 * 16)
    for gap in range(17):
        offers(guest, 1 + 200 * gap, 101 + 200 * gap)
    offers(guest, 3301, 3401)
    assert guest.connection.received == body(3400, 1)


@settings(max_examples=60, deadline=None)
@given(
    isn=st.sampled_from([0, 2**31 - 700, MODULUS - 1, MODULUS - 900]),
    pieces=st.lists(st.tuples(st.integers(0, 2999), st.integers(1, 700)), max_size=60),
    sack=st.booleans(),
    reading=st.booleans(),
)
def test_a_stream_cut_up_and_shuffled_at_will_arrives_whole(
    isn: int, pieces: list[tuple[int, int]], sack: bool, reading: bool
) -> None:
    guest = dialling(isn, Options(sack=sack))
    guest.connection.reading = reading
    covered = [*pieces, *((start, 100) for start in range(0, 3000, 100))]
    for start, length in covered:
        offers(guest, 1 + start, min(1 + start + length, 3001))
        guest.hears()
        guest.connection.read(0 if reading else 50)
    guest.says(seq=3001, flags=ACK | FIN)
    assert guest.hears()[-1].ack == 3002
    guest.connection.read(3000)
    assert guest.connection.received == body(3000, 1)
    assert guest.connection.memory_in_use == 0


# --- the window


def test_what_is_promised_is_what_the_host_leaves_room_for(isn: int) -> None:
    guest = dialling(isn, window=64_000)
    guest.connection.reading = False
    offers(guest, 1, 20_001)
    promise = guest.hears_one()
    assert abs(guest.window_of(promise) - 44_000) < 128
    assert guest.connection.unread == 20_000


def test_bytes_beyond_the_window_are_cut_off_and_said_to_be(isn: int) -> None:
    guest = dialling(isn, window=10_000)
    guest.connection.reading = False
    offers(guest, 1, 9_001)
    edge = 9_001 + guest.window_of(guest.hears_one())
    assert Event.DROPPED in offers(guest, 9_001, 12_001)
    assert edge - 1 <= guest.connection.unread < edge + 127
    closed = guest.hears_one()
    assert (closed.ack, closed.window) == (guest.connection.unread + 1, 0)
    assert Event.DROPPED in offers(guest, edge + 5000, edge + 6000)
    assert guest.hears_one().ack == closed.ack


def test_a_probe_of_a_closed_window_is_answered_and_its_byte_is_not_taken(isn: int) -> None:
    guest = dialling(isn, window=12_800)
    guest.connection.reading = False
    offers(guest, 1, 12_801)
    assert guest.hears_one().window == 0
    offers(guest, 12_801, 12_802)
    probe = guest.hears_one()
    assert (probe.ack, probe.window) == (12_801, 0)
    offers(guest, 12_800, 12_801)
    assert guest.hears_one().ack == 12_801


def test_the_window_opens_again_only_when_it_is_worth_it(isn: int) -> None:
    guest = dialling(isn, window=12_800)
    guest.connection.reading = False
    offers(guest, 1, 12_801)
    guest.hears()
    for _ in range(6):
        guest.connection.read(1000)
        assert guest.hears() == []
    guest.connection.read(1000)
    assert guest.window_of(guest.hears_one()) >= 6400


def test_the_promised_edge_never_moves_back_while_bytes_are_taken(isn: int) -> None:
    guest = dialling(isn, window=50_000)
    guest.connection.reading = False
    edge = 0
    for start in range(1, 40_000, 1111):
        offers(guest, start, start + 1111)
        guest.connection.read(300)
        for heard in guest.hears():
            assert heard.ack + guest.window_of(heard) > edge - 128, "but for the rounding of RFC 7323 2.4"
            edge = max(edge, heard.ack + guest.window_of(heard))


@pytest.mark.parametrize("size", [1, 60, 100, 127])
def test_small_segments_cannot_creep_past_the_window(isn: int, size: int) -> None:
    guest = dialling(isn, window=12_800)
    guest.connection.reading = False
    offers(guest, 1, 12_001)
    guest.hears()
    at = 12_001
    for _ in range(2000):
        offers(guest, at, at + size)
        heard = guest.hears()
        at = heard[-1].ack if heard else at + size
    assert guest.connection.unread <= 12_800 + 128


def test_what_was_once_promised_is_taken_even_if_a_later_promise_rounds_it_away(isn: int) -> None:
    guest = dialling(isn, window=12_800)
    guest.connection.reading = False
    offers(guest, 1, 12_001)
    promised = 12_001 + guest.window_of(guest.hears_one())
    offers(guest, 12_001, 12_051)
    guest.hears()
    assert not offers(guest, 12_051, promised) & Event.DROPPED
    assert guest.connection.unread == promised - 1


def test_a_segment_is_dropped_when_memory_is_short_and_taken_later(isn: int) -> None:
    guest = dialling(isn, memory=4096)
    assert not offers(guest, 2001, 3001) & Event.DROPPED
    assert Event.DROPPED in offers(guest, 8001, 9001)
    assert guest.connection.memory_in_use == 4096
    offers(guest, 1, 2001)
    offers(guest, 3001, 9001)
    assert guest.connection.received == body(9000, 1)
    assert guest.connection.memory_in_use == 0


# --- RST and SYN (RFC 5961)


def test_a_reset_at_exactly_the_next_byte_ends_the_connection(isn: int) -> None:
    guest = dialling(isn)
    offers(guest, 1, 1001)
    assert guest.says(seq=1001, flags=RST) == Event.RESET
    assert guest.state() is State.CLOSED
    assert guest.hears() == []


@pytest.mark.parametrize("ahead", [1, 1000, 60_000])
def test_a_reset_elsewhere_in_the_window_is_challenged(isn: int, ahead: int) -> None:
    guest = dialling(isn)
    offers(guest, 1, 1001)
    guest.hears()
    assert guest.says(seq=1001 + ahead, flags=RST) == Event(0)
    challenge = guest.hears_one()
    assert (challenge.seq, challenge.ack, challenge.flags) == (1, 1001, ACK)
    assert guest.says(seq=challenge.ack, flags=RST) == Event.RESET


@pytest.mark.parametrize("distance", [-1, -1000, 2_000_000, 2**31 - 5000])
def test_a_reset_outside_the_window_is_ignored_in_silence(isn: int, distance: int) -> None:
    guest = dialling(isn)
    offers(guest, 1, 1001)
    guest.hears()
    guest.says(seq=1001 + distance, flags=RST)
    assert guest.state() is State.ESTABLISHED
    assert guest.hears() == []


def test_a_flood_of_resets_is_answered_once_a_batch(isn: int) -> None:
    guest = dialling(isn)
    for ahead in range(1, 500):
        guest.says(seq=1 + ahead, flags=RST)
    assert len(guest.hears()) == 1
    assert guest.state() is State.ESTABLISHED


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, SYN | RST, SYN | FIN])
@pytest.mark.parametrize("seq", [0, 1, 500, 2**31])
def test_a_syn_on_an_open_connection_is_challenged(isn: int, flags: Flag, seq: int) -> None:
    guest = dialling(isn)
    guest.says(seq=seq, flags=flags)
    challenge = guest.hears_one()
    assert (challenge.seq, challenge.ack, challenge.flags) == (1, 1, ACK)
    assert guest.state() is State.ESTABLISHED


def test_a_segment_without_ack_is_ignored(isn: int) -> None:
    guest = dialling(isn)
    assert guest.says(b"data", flags=Flag(0)) == Event(0)
    assert guest.connection.received == b""


def test_an_acknowledgment_of_what_was_never_sent_is_answered_and_its_data_is_not_taken(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(500))
    guest.hears()
    guest.says(b"data", ack=502)
    assert guest.connection.received == b""
    assert guest.hears_one().seq == 501
    assert guest.connection.in_flight == 500


# --- timestamps (RFC 7323)


def test_the_newest_timestamp_in_order_is_echoed(isn: int) -> None:
    guest = dialling(isn, STAMPED)
    offers(guest, 1, 1001, timestamp=50)
    assert guest.hears_one().timestamp == (guest.now // 1000 % MODULUS, 50)
    offers(guest, 2001, 3001, timestamp=60)
    assert guest.hears_one().timestamp == (guest.now // 1000 % MODULUS, 50), "a segment behind a gap is not echoed"
    offers(guest, 1001, 2001, timestamp=70)
    assert guest.hears_one().timestamp == (guest.now // 1000 % MODULUS, 70)


def test_an_old_timestamp_marks_a_segment_of_the_past(isn: int) -> None:
    guest = dialling(isn, STAMPED)
    offers(guest, 1, 1001, timestamp=50)
    guest.hears()
    assert not offers(guest, 1001, 2001, timestamp=49) & Event.DATA
    assert guest.hears_one().ack == 1001
    assert Event.DATA in offers(guest, 1001, 2001, timestamp=50)


def test_timestamps_are_compared_round_the_wrap(isn: int) -> None:
    guest = dialling(isn, STAMPED)
    for start, timestamp in ((1, 2**31 - 1), (1001, 2**32 - 3), (2001, 4)):
        assert Event.DATA in offers(guest, start, start + 1000, timestamp=timestamp)
        guest.hears()
    assert not offers(guest, 3001, 4001, timestamp=2**32 - 1) & Event.DATA


def test_a_timestamp_is_no_longer_compared_after_24_days(isn: int) -> None:
    guest = dialling(isn, STAMPED)
    offers(guest, 1, 1001, timestamp=50)
    guest.waits(25 * DAY)
    assert Event.DATA in offers(guest, 1001, 2001, timestamp=10)


def test_a_reset_is_not_held_to_its_timestamp(isn: int) -> None:
    guest = dialling(isn, STAMPED)
    offers(guest, 1, 1001, timestamp=50)
    assert guest.says(seq=1001, flags=RST, timestamp=1) == Event.RESET


def test_a_segment_that_lacks_its_timestamp_is_taken_as_linux_does(isn: int) -> None:
    guest = dialling(isn, STAMPED)
    offers(guest, 1, 1001, timestamp=50)
    assert Event.DATA in offers(guest, 1001, 2001)
    echo = guest.hears_one().timestamp
    assert echo is not None
    assert echo[1] == 50


def test_a_timestamp_that_was_not_agreed_on_means_nothing(isn: int) -> None:
    guest = dialling(isn)
    assert Event.DATA in offers(guest, 1, 1001, timestamp=50)
    assert Event.DATA in offers(guest, 1001, 2001, timestamp=1)
    assert guest.hears_one().timestamp is None


# --- keeping alive (RFC 9293 section 3.8.4)


def test_a_keepalive_of_the_guest_is_answered(isn: int) -> None:
    guest = dialling(isn)
    offers(guest, 1, 1001)
    guest.hears()
    guest.waits(10 * MS)
    guest.says(seq=1000)
    assert guest.hears_one().ack == 1001
    guest.says(b"x", seq=1000)
    assert guest.hears_one().ack == 1001
    assert guest.connection.received == body(MSS, 1)


def test_bytes_behind_a_gap_are_reported_even_while_data_goes_the_other_way(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(3000))
    offers(guest, 1001, 2001)
    *data, report = guest.hears()
    assert [len(segment.payload) for segment in data] == [1000] * 3
    assert (report.payload, report.sack) == (b"", ((1001, 2001),))


# --- acknowledgments that wait (RFC 9293 section 3.8.6.3)


def sends_now(guest: Guest) -> int:
    """How many segments the connection sends at this very moment."""
    return len(guest.connection.segments(guest.now))


def test_a_small_request_is_acknowledged_by_its_answer(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    offers(guest, 1, 101)
    assert sends_now(guest) == 0
    guest.connection.send(b"answer")
    answer = guest.hears_one()
    assert (answer.payload, answer.ack) == (b"answer", 101)
    assert guest.connection.ack_deadline is None


def test_a_small_request_without_an_answer_is_acknowledged_after_a_millisecond(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    offers(guest, 1, 101)
    assert guest.connection.ack_deadline == guest.now + 1 * MS
    assert guest.hears_one().ack == 101


def test_the_second_full_segment_is_acknowledged_at_once(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    offers(guest, 1, 1461)
    assert sends_now(guest) == 0
    offers(guest, 1461, 2921)
    assert sends_now(guest) == 1
    assert guest.connection.ack_deadline is None


def test_small_segments_are_acknowledged_together_a_millisecond_after_the_first(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    first_at = guest.now
    offers(guest, 1, 101)
    guest.now += MS // 2
    offers(guest, 101, 201)
    assert guest.connection.ack_deadline == first_at + 1 * MS
    assert guest.hears_one().ack == 201


def test_a_transfer_among_others_is_acknowledged_ever_less_often_up_to_its_limit(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    guest.connection.ack_limit = 65_535 // 2
    quotas = []
    heard = 1
    for start in range(1, 3_000_001, 1000):
        offers(guest, start, start + 1000)
        guest.connection.read(1000)
        for segment in guest.connection.segments(guest.now):
            acknowledged = guest.relative(segment).ack
            quotas.append(acknowledged - heard)
            heard = acknowledged
    assert quotas[0] == 2000, "two segments"
    assert sorted(quotas) == quotas, "more as the transfer goes on"
    assert quotas[-1] == 33_000


def ask_and_answer(guest: Guest, times: int) -> int:
    """Let requests of 100 bytes be answered before their acknowledgment is due; where the next one starts."""
    start = 1
    for _ in range(times):
        offers(guest, start, start + 100)
        start += 100
        guest.connection.send(b"answer")
        assert guest.hears_one().ack == start
    return start


def test_where_answers_come_anyway_an_acknowledgment_waits_for_them_longer(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    start = ask_and_answer(guest, 3)
    offers(guest, start, start + 100)
    assert guest.connection.ack_deadline == guest.now + 40 * MS


def test_an_acknowledgment_that_waited_longer_in_vain_is_the_last_to_do_so(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    start = ask_and_answer(guest, 5)
    offers(guest, start, start + 100)
    assert guest.hears_one().ack == start + 100
    offers(guest, start + 100, start + 200)
    assert guest.connection.ack_deadline == guest.now + 1 * MS


def test_where_a_guest_waits_for_its_acknowledgment_the_next_comes_at_half_as_much(isn: int) -> None:
    guest = dialling(isn, window=65_535)
    guest.connection.ack_limit = 65_535 // 2
    start = 1

    def send(count: int) -> list[int]:
        nonlocal start
        acknowledged = []
        for _ in range(count):
            offers(guest, start, start + 1000)
            start += 1000
            guest.connection.read(1000)
            acknowledged += [guest.relative(segment).ack for segment in guest.connection.segments(guest.now)]
        return acknowledged

    acknowledged = send(600)[-1]
    waiting = start - acknowledged
    assert waiting > 4000
    assert guest.hears_one().ack == start, "by the timer: the guest's congestion window lets out no more"
    begun = start
    assert send(waiting // 1000)[0] - begun <= waiting // 2 + 1000


def test_a_gap_and_what_fills_it_are_acknowledged_at_once(isn: int) -> None:
    guest = dialling(isn)
    offers(guest, 1001, 2001)
    assert sends_now(guest) == 1
    offers(guest, 1, 1001)
    assert sends_now(guest) == 1
