"""Opening connections, both ways (RFC 9293 section 3.5), with the options of RFC 7323 and RFC 2018."""

from __future__ import annotations

from itertools import product

import pytest

from tests.worker.tcp.guest import (
    ACK,
    FIN,
    MS,
    MSS,
    PLAIN,
    RST,
    SECOND,
    START,
    SYN,
    Guest,
    Options,
    body,
    called,
    dialling,
)
from worker.tcp.connection import Event, State
from worker.wire.headers import Flag

EVERY_OFFER = [
    Options(mss, scale, sack, ts)
    for mss, scale, sack, ts in product((None, 900), (None, 0, 3), (False, True), (False, True))
]


def test_a_held_syn_is_not_answered_until_the_host_is_up(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.hold(guest.syn(), guest.now)
    assert guest.state() is State.LISTEN
    assert guest.hears() == []
    assert guest.connection.deadline is None
    guest.connection.answer()
    answer = guest.hears_one()
    assert (answer.seq, answer.ack, answer.flags) == (0, 1, SYN | ACK)
    assert Event.ESTABLISHED in guest.says()
    assert guest.state() is State.ESTABLISHED


@pytest.mark.parametrize("offers", EVERY_OFFER)
def test_the_answer_to_a_syn_takes_up_what_was_offered_and_nothing_else(offers: Options) -> None:
    guest = Guest(5, offers)
    guest.connection.hold(guest.syn(), guest.now)
    guest.connection.answer()
    answer = guest.hears_one()
    assert answer.mss == MSS
    assert answer.sack_permitted is offers.sack
    assert (answer.window_scale is not None) is (offers.window_scale is not None)
    assert (answer.timestamp is not None) is offers.timestamps


@pytest.mark.parametrize("offers", EVERY_OFFER)
def test_a_call_offers_everything_and_then_uses_what_was_taken_up(offers: Options) -> None:
    guest = Guest(5, offers)
    guest.connection.call()
    syn = guest.hears_one()
    assert (syn.flags, syn.mss, syn.window_scale, syn.sack_permitted) == (SYN, MSS, 7, True)
    assert syn.timestamp is not None
    event = guest.connection.receive(guest.syn(SYN | ACK, ack=1), guest.now)
    assert Event.ESTABLISHED in event
    reply = guest.hears_one()
    assert (reply.seq, reply.ack, reply.flags) == (1, 1, ACK)
    assert (reply.timestamp is not None) is offers.timestamps


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize(("offered", "used"), [(None, 536), (900, 900), (MSS, MSS), (9000, MSS), (1, 64), (0, 536)])
def test_the_segment_size_is_the_smaller_of_both_less_the_timestamp(
    offered: int | None, used: int, timestamps: bool
) -> None:
    guest = dialling(1, Options(mss=offered, timestamps=timestamps))
    guest.connection.send(body(3000))
    full = used - 12 if timestamps else used
    assert guest.connection.mss == full
    assert len(guest.hears()[0].payload) == full


def test_a_syn_s_window_is_never_scaled_and_the_next_one_is(isn: int) -> None:
    guest = Guest(isn, Options(window_scale=4), window=500_000)
    guest.connection.hold(guest.syn(window=2000), guest.now)
    guest.connection.answer()
    assert guest.hears_one().window == 65535
    guest.says(window=100)
    assert guest.connection.room == 1600
    guest.says(body(1))
    assert abs(guest.window_of(guest.hears_one()) - 500_000) <= 128


def test_without_window_scaling_no_more_than_64_kib_is_promised(isn: int) -> None:
    guest = dialling(isn, PLAIN, window=500_000)
    guest.says(body(MSS))
    assert guest.hears_one().window == 65535


def test_a_repeated_syn_is_answered_again(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.hold(guest.syn(), guest.now)
    guest.connection.answer()
    first = guest.hears_one()
    guest.waits(10 * MS)
    guest.connection.receive(guest.syn(), guest.now)
    assert guest.hears_one() == first


def test_a_call_without_answer_is_repeated_ever_more_slowly_and_given_up_after_ten_seconds(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.call()
    sent = [guest.now for _ in guest.hears()]
    while Event.TIMEOUT not in guest.waits_for_timer():
        assert guest.hears_one().flags == SYN
        sent.append(guest.now)
    assert [(at - START) // SECOND for at in [*sent, guest.now]] == [0, 1, 3, 7, 10]
    assert guest.state() is State.CLOSED
    assert guest.hears() == []


def test_an_answer_without_acknowledgment_is_repeated_and_given_up(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.hold(guest.syn(), guest.now)
    guest.connection.answer()
    guest.hears()
    answers = 0
    while Event.TIMEOUT not in guest.waits_for_timer():
        assert guest.hears_one().flags == SYN | ACK
        answers += 1
    assert answers == 3


def test_the_round_trip_of_a_repeated_syn_is_not_measured(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.call()
    guest.hears()
    guest.waits_for_timer()
    guest.hears()
    guest.connection.receive(guest.syn(SYN | ACK, ack=1), guest.now + 5)
    assert guest.connection.srtt == 0


def test_the_round_trip_of_the_handshake_is_measured(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.call()
    guest.hears()
    guest.waits(40 * MS)
    guest.connection.receive(guest.syn(SYN | ACK, ack=1), guest.now)
    assert guest.connection.srtt == 40 * MS
    assert guest.connection.rto == 200 * MS
    assert guest.connection.deadline is not None
    assert guest.connection.deadline > guest.now + SECOND, "only the keepalive timer is armed"


def test_a_refused_call_is_reset(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.call()
    guest.hears()
    assert guest.says(seq=0, ack=1, flags=RST | ACK) == Event.RESET
    assert guest.state() is State.CLOSED


@pytest.mark.parametrize("flags", [RST, ACK, FIN | ACK, SYN])
def test_a_call_is_not_ended_or_opened_by_a_segment_that_does_not_answer_it(isn: int, flags: Flag) -> None:
    guest = Guest(isn, Options())
    guest.connection.call()
    guest.hears()
    assert guest.says(seq=0, ack=1, flags=flags) == Event(0)
    assert guest.state() is State.SYN_SENT


@pytest.mark.parametrize("ack", [-1, 0, 2, 2**31])
def test_an_answer_to_a_syn_that_was_never_sent_is_to_be_reset(isn: int, ack: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.call()
    guest.hears()
    assert guest.connection.receive(guest.syn(SYN | ACK, ack=ack), guest.now) == Event.BAD_ACK
    assert guest.says(seq=0, ack=ack, flags=RST | ACK) == Event(0)
    assert guest.state() is State.SYN_SENT


@pytest.mark.parametrize("ack", [0, 2, 2**31])
def test_a_handshake_that_acknowledges_something_else_is_to_be_reset(isn: int, ack: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.hold(guest.syn(), guest.now)
    guest.connection.answer()
    guest.hears()
    assert guest.says(ack=ack) == Event.BAD_ACK
    assert guest.state() is State.SYN_RECEIVED


def test_data_and_fin_may_come_with_the_last_segment_of_the_handshake(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.hold(guest.syn(), guest.now)
    guest.connection.answer()
    guest.hears()
    assert Event.ESTABLISHED | Event.DATA | Event.FIN in guest.says(b"GET", flags=ACK | FIN)
    assert guest.connection.received == b"GET"
    assert guest.hears_one().ack == 5


def test_a_guest_that_gives_up_its_held_syn_ends_the_connection(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.hold(guest.syn(), guest.now)
    assert guest.says(seq=5, flags=RST) == Event(0)
    assert guest.says(seq=1, flags=RST) == Event.RESET


def test_both_ways_of_opening_carry_data_both_ways(isn: int) -> None:
    for opened in (dialling, called):
        guest = opened(isn, Options(timestamps=True))
        guest.says(b"question", timestamp=2)
        guest.connection.send(b"answer")
        answer = guest.hears_one()
        assert (answer.payload, answer.ack) == (b"answer", 9)
        assert guest.connection.received == b"question"


def test_a_connection_that_never_opened_holds_no_memory(isn: int) -> None:
    guest = Guest(isn, Options())
    guest.connection.hold(guest.syn(), guest.now)
    assert guest.connection.memory_in_use == 0
