"""Ending connections: FIN in every state, half-close both ways, TIME-WAIT, keepalive (RFC 9293 section 3.6)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.worker.tcp.guest import ACK, FIN, MS, OFFERS, RST, SECOND, SYN, Guest, Options, body, called, dialling
from worker.tcp.connection import Event, State
from worker.wire.headers import Flag

Opening = Callable[[int], Guest]


def host_has_finished(isn: int, data: bytes = b"", options: Options = OFFERS) -> Guest:
    """The host side has closed, and its FIN is on the way: FIN-WAIT-1."""
    guest = dialling(isn, options)
    guest.connection.send(data)
    guest.connection.finish()
    guest.hears()
    return guest


def guest_has_finished(isn: int) -> Guest:
    """The guest has closed, which is acknowledged: CLOSE-WAIT."""
    guest = dialling(isn)
    assert Event.FIN in guest.says(flags=ACK | FIN)
    guest.hears()
    return guest


def in_time_wait(isn: int, options: Options = OFFERS) -> Guest:
    """Both have closed, the host first."""
    guest = host_has_finished(isn, options=options)
    guest.says(ack=2, flags=ACK | FIN)
    guest.hears()
    return guest


# --- the host closes first


@pytest.mark.parametrize("opened", [dialling, called])
def test_the_host_s_fin_goes_through_fin_wait_1_and_2_to_time_wait(isn: int, opened: Opening) -> None:
    guest: Guest = opened(isn)
    guest.connection.finish()
    fin = guest.hears_one()
    assert (fin.seq, fin.ack, fin.flags) == (1, 1, FIN | ACK)
    assert guest.state() is State.FIN_WAIT_1
    guest.says(ack=2)
    assert guest.state() is State.FIN_WAIT_2
    assert Event.FIN in guest.says(ack=2, flags=ACK | FIN)
    assert guest.state() is State.TIME_WAIT
    last = guest.hears_one()
    assert (last.seq, last.ack, last.flags) == (2, 2, ACK)
    assert guest.waits_for_timer() == Event.CLOSED


def test_the_fin_goes_with_the_last_byte(isn: int) -> None:
    guest = dialling(isn)
    guest.connection.send(body(1500))
    guest.connection.finish()
    first, second = guest.hears()
    assert FIN not in first.flags
    assert FIN in second.flags
    assert (second.seq, len(second.payload)) == (1001, 500)


def test_the_guest_may_go_on_sending_after_the_host_has_finished(isn: int) -> None:
    guest = host_has_finished(isn)
    guest.says(ack=2)
    for start in range(1, 3001, 1000):
        assert Event.DATA in guest.says(body(1000, start), seq=start, ack=2)
    assert guest.hears_one().ack == 3001
    guest.says(seq=3001, ack=2, flags=ACK | FIN)
    assert guest.connection.received == body(3000, 1)
    assert guest.state() is State.TIME_WAIT


def test_fin_and_the_acknowledgment_of_ours_in_one_segment_lead_to_time_wait(isn: int) -> None:
    guest = host_has_finished(isn, b"bye")
    guest.says(b"so long", ack=5, flags=ACK | FIN)
    assert guest.state() is State.TIME_WAIT
    assert guest.connection.received == b"so long"


def test_both_closing_at_once_go_through_closing(isn: int) -> None:
    guest = host_has_finished(isn)
    assert Event.FIN in guest.says(flags=ACK | FIN)
    assert guest.state() is State.CLOSING
    assert guest.hears_one().ack == 2
    guest.says(seq=2, ack=2)
    assert guest.state() is State.TIME_WAIT


def test_data_is_not_acknowledged_by_the_fin_s_number_alone(isn: int) -> None:
    guest = host_has_finished(isn, body(500))
    guest.says(ack=501)
    assert guest.state() is State.FIN_WAIT_1
    guest.says(ack=502)
    assert guest.state() is State.FIN_WAIT_2


# --- the guest closes first


def test_the_guest_s_fin_goes_through_close_wait_and_last_ack(isn: int) -> None:
    guest = guest_has_finished(isn)
    assert guest.state() is State.CLOSE_WAIT
    guest.connection.finish()
    fin = guest.hears_one()
    assert (fin.seq, fin.ack, fin.flags) == (1, 2, FIN | ACK)
    assert guest.state() is State.LAST_ACK
    assert Event.CLOSED in guest.says(seq=2, ack=2)
    assert guest.state() is State.CLOSED
    assert guest.connection.memory_in_use == 0


def test_the_host_may_go_on_sending_after_the_guest_has_finished(isn: int) -> None:
    guest = guest_has_finished(isn)
    guest.connection.send(body(3000))
    assert guest.hears_data() == [(1, 1001), (1001, 2001), (2001, 3001)]
    guest.says(seq=2, ack=3001)
    guest.connection.finish()
    assert guest.hears_one().seq == 3001
    assert Event.CLOSED in guest.says(seq=2, ack=3002)


def test_a_repeated_fin_is_acknowledged_again(isn: int) -> None:
    guest = guest_has_finished(isn)
    assert guest.says(flags=ACK | FIN) == Event(0)
    assert guest.hears_one().ack == 2
    assert guest.state() is State.CLOSE_WAIT


def test_a_fin_behind_a_gap_does_not_count_until_the_gap_is_filled(isn: int) -> None:
    guest = dialling(isn)
    assert Event.FIN not in guest.says(body(1000, 1001), seq=1001, flags=ACK | FIN)
    assert guest.state() is State.ESTABLISHED
    guest.says(body(1000, 1))
    assert guest.connection.received == body(2000, 1)
    assert guest.hears()[-1].ack == 2001
    assert Event.FIN in guest.says(seq=2001, flags=ACK | FIN)


def test_a_fin_cut_off_by_the_window_does_not_count(isn: int) -> None:
    guest = dialling(isn, window=10_000)
    guest.connection.reading = False
    assert Event.FIN not in guest.says(body(10_001, 1), flags=ACK | FIN)
    assert guest.state() is State.ESTABLISHED


def test_a_fin_is_taken_while_the_window_is_closed(isn: int) -> None:
    guest = dialling(isn, window=12_800)
    guest.connection.reading = False
    guest.says(body(12_800, 1))
    assert guest.hears_one().window == 0
    assert Event.FIN in guest.says(seq=12_801, flags=ACK | FIN)
    assert guest.hears_one().ack == 12_802
    guest.connection.read(20_000)
    assert guest.connection.received == body(12_800, 1)
    assert guest.connection.memory_in_use == 0


@pytest.mark.parametrize("finished", [guest_has_finished, in_time_wait])
def test_bytes_after_a_fin_are_not_taken(isn: int, finished: Opening) -> None:
    guest: Guest = finished(isn)
    guest.says(b"more", seq=2, ack=2 if guest.state() is State.TIME_WAIT else 1)
    assert guest.connection.received == b""


# --- FIN lost


@pytest.mark.parametrize("finished", [host_has_finished, guest_has_finished])
def test_a_fin_without_answer_is_repeated_until_it_is_given_up(isn: int, finished: Opening) -> None:
    guest: Guest = finished(isn)
    guest.connection.finish()
    guest.hears()
    began = guest.now
    repeats = 0
    while Event.TIMEOUT not in guest.waits_for_timer():
        fin = guest.hears_one()
        assert (fin.seq, fin.payload, FIN in fin.flags) == (1, b"", True)
        repeats += 1
    assert repeats == 15
    assert 300 * SECOND < guest.now - began < 1000 * SECOND
    assert guest.connection.memory_in_use == 0


def test_a_lost_fin_is_repeated_with_the_byte_before_it(isn: int) -> None:
    guest = host_has_finished(isn, body(1400))
    guest.says(ack=1001)
    guest.waits_for_timer()
    repeat = guest.hears_one()
    assert (repeat.seq, len(repeat.payload), FIN in repeat.flags) == (1001, 400, True)


def test_a_fin_that_does_not_fit_beside_the_last_full_segment_is_repeated_alone(isn: int) -> None:
    guest = host_has_finished(isn, body(1000))
    guest.waits_for_timer()
    assert guest.hears_data() == [(1, 1001)]
    guest.says(ack=1001)
    (fin,) = guest.hears()
    assert (fin.seq, fin.payload, FIN in fin.flags) == (1001, b"", True)


# --- TIME-WAIT


def test_a_repeated_fin_is_answered_in_time_wait_and_starts_it_anew(isn: int) -> None:
    guest = in_time_wait(isn)
    before = guest.connection.deadline
    guest.waits(4 * SECOND)
    guest.says(ack=2, flags=ACK | FIN)
    assert guest.hears_one().ack == 2
    assert before is not None
    assert guest.connection.deadline == before + 4 * SECOND


def test_time_wait_ends_after_its_time(isn: int) -> None:
    guest = in_time_wait(isn)
    began = guest.now
    assert guest.waits_for_timer() == Event.CLOSED
    assert guest.now - began == 10 * SECOND


def test_a_new_syn_beyond_the_old_connection_reopens_it(isn: int) -> None:
    guest = in_time_wait(isn)
    assert guest.says(seq=500, flags=SYN) == Event.REOPEN


def test_a_new_syn_with_a_newer_timestamp_reopens_whatever_its_number(isn: int) -> None:
    guest = in_time_wait(isn, Options(timestamps=True))
    assert guest.says(seq=-5000, flags=SYN, timestamp=9) == Event.REOPEN


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, SYN | RST])
def test_an_old_syn_in_time_wait_is_challenged(isn: int, flags: Flag) -> None:
    guest = in_time_wait(isn)
    guest.says(seq=0, ack=2, flags=flags)
    assert guest.hears_one().ack == 2
    assert guest.state() is State.TIME_WAIT


# --- a guest that is gone


def test_an_idle_connection_is_probed_after_two_hours_and_ended_without_answer(isn: int) -> None:
    guest = dialling(isn)
    began = guest.now
    probes = 0
    while Event.TIMEOUT not in guest.waits_for_timer():
        probe = guest.hears_one()
        assert ((probe.seq + 1) % 2**32, probe.payload, probe.flags) == (1, b"", ACK)
        probes += 1
    assert probes == 9
    assert guest.now - began == 7200 * SECOND + 9 * 75 * SECOND


def test_an_answer_to_a_probe_keeps_the_connection(isn: int) -> None:
    guest = dialling(isn)
    for _ in range(20):
        assert guest.waits_for_timer() == Event(0)
        guest.hears()
        guest.waits(20 * MS)
        guest.says()
    assert guest.state() is State.ESTABLISHED


def test_a_half_closed_connection_is_probed_after_two_minutes(isn: int) -> None:
    guest = host_has_finished(isn)
    guest.says(ack=2)
    began = guest.now
    while Event.TIMEOUT not in guest.waits_for_timer():
        guest.hears()
    assert guest.now - began < 900 * SECOND


@pytest.mark.parametrize("made", [dialling, called, host_has_finished, guest_has_finished, in_time_wait])
def test_a_reset_ends_the_connection_in_every_state_and_frees_its_memory(isn: int, made: Opening) -> None:
    guest: Guest = made(isn)
    guest.connection.send(body(3000))
    guest.hears()
    next_byte = 2 if guest.state() in (State.CLOSE_WAIT, State.TIME_WAIT) else 1
    assert guest.says(seq=next_byte, flags=RST) == Event.RESET
    assert guest.state() is State.CLOSED
    assert guest.connection.memory_in_use == 0
    assert guest.connection.deadline is not None or guest.hears() == []
