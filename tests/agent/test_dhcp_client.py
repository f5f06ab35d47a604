"""The client's states, with a server that is this test and a clock that is a number."""

from __future__ import annotations

import itertools
import math
from ipaddress import IPv4Address
from random import Random

import pytest
from dpkt import dhcp

from agent.dhcp_client import BROADCAST, MAX_TRIES, DhcpClient, State
from agent.dhcp_message import ANY, FOREVER, Kind

MAC = bytes.fromhex("5a94efe40cee")
ADDRESS, OTHER = IPv4Address("192.168.127.2"), IPv4Address("192.168.127.3")
SERVER = IPv4Address("192.168.127.1")
LIFETIME = 3600


class Bed:
    """A client, and what it said last."""

    def __init__(self) -> None:
        self.client = DhcpClient(MAC, Random(1))
        self.now = 1000.0
        self.said = dhcp.DHCP()
        self.src = self.dst = ANY

    @property
    def kind(self) -> Kind:
        return Kind(dict(self.said.opts)[53][0])

    def option(self, code: int) -> IPv4Address | None:
        value = dict(self.said.opts).get(code)
        return None if value is None else IPv4Address(value)

    def listen(self) -> int:
        """Take what the client says; how many messages."""
        output = self.client.take_output()
        for message in output:
            self.said, self.src, self.dst = dhcp.DHCP(message.payload), message.src, message.dst
        return len(output)

    def answer(
        self,
        kind: Kind,
        address: IPv4Address = ADDRESS,
        lifetime: int = LIFETIME,
        xid: int | None = None,
        mac: bytes = MAC,
    ) -> None:
        options = [(53, bytes([kind])), (54, SERVER.packed)]
        if kind is not Kind.NAK:
            options.append((51, lifetime.to_bytes(4, "big")))
        xid = self.said.xid if xid is None else xid
        reply = dhcp.DHCP(op=2, xid=xid, chaddr=mac, yiaddr=int(address), opts=options)
        self.client.receive(bytes(reply), self.now)
        self.listen()

    def pass_time(self, seconds: float = math.inf) -> int:
        """Until the client has something to do, or `seconds` are over; how many messages it sent."""
        due = self.client.poll_at()
        self.now = min(due, self.now + seconds)
        assert self.now < math.inf
        self.client.on_timer(self.now)
        return self.listen()

    def pass_until(self, state: State) -> None:
        while self.client.state is not state:
            self.pass_time()

    def link_up(self) -> None:
        self.client.link_up(self.now)
        self.listen()

    def bind(self, lifetime: int = LIFETIME) -> None:
        """Come to BOUND in the ordinary way."""
        self.link_up()
        self.answer(Kind.OFFER, lifetime=lifetime)
        self.answer(Kind.ACK, lifetime=lifetime)
        assert self.client.state is State.BOUND


@pytest.fixture
def bed() -> Bed:
    return Bed()


def test_four_messages_give_a_lease(bed: Bed) -> None:
    bed.link_up()
    assert (bed.kind, bed.src, bed.dst) == (Kind.DISCOVER, ANY, BROADCAST)
    xid = bed.said.xid
    bed.answer(Kind.OFFER)
    assert (bed.kind, bed.src, bed.dst) == (Kind.REQUEST, ANY, BROADCAST)
    assert (bed.option(50), bed.option(54), bed.said.ciaddr, bed.said.xid) == (ADDRESS, SERVER, 0, xid)
    assert bed.client.lease is None
    bed.answer(Kind.ACK)
    assert bed.client.lease is not None
    assert bed.client.lease.address.ip == ADDRESS
    assert (bed.client.state, bed.client.poll_at()) == (State.BOUND, bed.now + LIFETIME / 2)


def test_discover_is_repeated_with_growing_pauses_and_never_given_up(bed: Bed) -> None:
    bed.link_up()
    times = [bed.now]
    for _ in range(8):
        assert bed.pass_time() == 1
        assert bed.kind is Kind.DISCOVER
        times.append(bed.now)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 16, 16, 16], rel=0.1)
    assert bed.said.secs == int(bed.now - times[0])


@pytest.mark.parametrize("wrong", [{"xid": 1}, {"mac": bytes(6)}, {"address": ANY}])
def test_an_offer_for_somebody_else_or_of_nothing_is_passed_over(bed: Bed, wrong: dict[str, int]) -> None:
    bed.link_up()
    bed.answer(Kind.OFFER, **wrong)  # type: ignore[arg-type]
    assert bed.client.state is State.SELECTING


def test_rubbish_is_passed_over(bed: Bed) -> None:
    bed.link_up()
    bed.client.receive(b"rubbish", bed.now)
    assert bed.client.state is State.SELECTING


def test_an_acknowledgement_without_a_lease_time_changes_nothing(bed: Bed) -> None:
    bed.link_up()
    bed.answer(Kind.OFFER)
    bed.answer(Kind.ACK, address=ANY)
    assert bed.client.state is State.REQUESTING


def test_a_server_that_offers_and_falls_silent_is_asked_a_few_times_then_all_are(bed: Bed) -> None:
    bed.link_up()
    first = bed.said.xid
    bed.answer(Kind.OFFER)
    for _ in range(MAX_TRIES - 1):
        assert bed.pass_time() == 1
        assert bed.kind is Kind.REQUEST
    assert bed.pass_time() == 1
    assert bed.kind is Kind.DISCOVER
    assert bed.said.xid != first


def test_a_server_that_offers_and_refuses_is_not_asked_in_a_circle(bed: Bed) -> None:
    bed.link_up()
    bed.answer(Kind.OFFER)
    before = bed.now
    bed.answer(Kind.NAK)
    assert bed.client.state is State.SELECTING
    assert bed.pass_time() == 1
    assert bed.kind is Kind.DISCOVER
    assert bed.now >= before + 1


def test_half_time_renews_with_the_server_alone(bed: Bed) -> None:
    bed.bind()
    began = bed.now
    assert bed.pass_time() == 1
    assert bed.now == began + LIFETIME / 2
    assert (bed.client.state, bed.kind, bed.src, bed.dst) == (State.RENEWING, Kind.REQUEST, ADDRESS, SERVER)
    assert (bed.said.ciaddr, bed.option(50), bed.option(54)) == (int(ADDRESS), None, None)
    bed.now += 5
    bed.answer(Kind.ACK)
    assert bed.client.state is State.BOUND
    assert bed.client.expires_at == began + LIFETIME / 2 + LIFETIME  # from when it was asked for


def test_no_answer_leads_to_rebinding_with_all_then_to_the_end_of_the_lease(bed: Bed) -> None:
    bed.bind()
    began = bed.now
    renewals = rebindings = 0
    while bed.client.lease is not None:
        sent = bed.pass_time()
        if bed.client.state is State.RENEWING:
            renewals += sent
            assert bed.dst == SERVER
        elif bed.client.state is State.REBINDING:
            rebindings += sent
            assert (bed.src, bed.dst, bed.said.ciaddr) == (ADDRESS, BROADCAST, int(ADDRESS))
            assert bed.now >= began + LIFETIME * 0.875
    assert bed.now == began + LIFETIME
    assert 3 < renewals < 10
    assert 2 < rebindings < 10
    assert (bed.client.state, bed.kind, bed.option(50)) == (State.SELECTING, Kind.DISCOVER, ADDRESS)


def test_rebinding_takes_whoever_answers(bed: Bed) -> None:
    bed.bind()
    bed.pass_until(State.REBINDING)
    bed.answer(Kind.ACK)
    assert bed.client.state is State.BOUND


@pytest.mark.parametrize("state", [State.RENEWING, State.REBINDING])
def test_a_refusal_to_renew_ends_the_lease_at_once(bed: Bed, state: State) -> None:
    bed.bind()
    bed.pass_until(state)
    bed.answer(Kind.NAK)
    assert bed.client.lease is None
    assert (bed.client.state, bed.kind) == (State.SELECTING, Kind.DISCOVER)


def test_a_refusal_out_of_the_blue_is_passed_over(bed: Bed) -> None:
    bed.bind()
    bed.answer(Kind.NAK)
    assert bed.client.state is State.BOUND


def test_a_new_link_keeps_the_address_while_it_asks_whether_it_still_holds(bed: Bed) -> None:
    bed.bind()
    bed.now += 10
    bed.link_up()
    assert bed.client.lease is not None
    assert (bed.client.state, bed.kind, bed.src, bed.dst) == (State.REBOOTING, Kind.REQUEST, ANY, BROADCAST)
    assert (bed.option(50), bed.option(54), bed.said.ciaddr) == (ADDRESS, None, 0)
    bed.answer(Kind.ACK)
    assert bed.client.state is State.BOUND
    assert bed.client.expires_at == bed.now + LIFETIME


def test_a_new_link_to_another_network_gives_another_address(bed: Bed) -> None:
    bed.bind()
    bed.link_up()
    bed.answer(Kind.NAK)
    assert bed.client.lease is None
    bed.answer(Kind.OFFER, OTHER)
    bed.answer(Kind.ACK, OTHER)
    assert bed.client.lease is not None
    assert bed.client.lease.address.ip == OTHER


def test_a_new_link_without_a_server_keeps_the_lease_until_it_ends(bed: Bed) -> None:
    bed.bind()
    expires_at = bed.client.expires_at
    bed.link_up()
    while bed.client.state is State.REBOOTING:
        bed.pass_time()
    assert bed.client.state is State.BOUND
    while bed.client.lease is not None:
        bed.pass_time()
    assert bed.now == expires_at


def test_a_new_link_after_the_leases_end_begins_anew(bed: Bed) -> None:
    bed.bind()
    bed.now += LIFETIME
    bed.link_up()
    assert bed.client.lease is None
    assert (bed.kind, bed.option(50)) == (Kind.DISCOVER, ADDRESS)


def test_a_new_link_amid_an_exchange_begins_anew(bed: Bed) -> None:
    bed.link_up()
    bed.answer(Kind.OFFER)
    bed.link_up()
    assert bed.kind is Kind.DISCOVER


def test_a_lease_for_ever_is_never_renewed(bed: Bed) -> None:
    bed.bind(lifetime=FOREVER)
    assert (bed.client.poll_at(), bed.client.expires_at) == (math.inf, math.inf)


def test_a_timer_that_is_early_does_nothing(bed: Bed) -> None:
    bed.link_up()
    assert bed.pass_time(0.1) == 0
