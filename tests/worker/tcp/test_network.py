"""Two connections over a bad network: everything arrives, everything ends, and loss costs what it has to."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.tcp.goodput import DOCUMENT, HEADING, LOSSES, row
from tests.worker.tcp.network import Channel, Network
from worker.tcp.connection import Event, State

ENDS = {State.CLOSED, State.TIME_WAIT}


def written_rates() -> dict[float, tuple[float, ...]]:
    """The rows of the reviewed table."""
    rows = re.findall(r"^\| ([\d.]+) % \|(.*)\|$", DOCUMENT.read_text(), re.MULTILINE)
    return {float(loss) / 100: tuple(float(rate) for rate in rates.split("|")) for loss, rates in rows}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)),
    loss=st.floats(0, 0.15),
    duplicates=st.floats(0, 0.2),
    reordered=st.floats(0, 0.5),
    queue=st.integers(3, 100),
    sack=st.booleans(),
    gso_max=st.sampled_from([0, 8000, 65483]),
    isn=st.sampled_from([0, 2**31 - 9000, 2**32 - 1, 2**32 - 20_000]),
)
def test_whatever_the_network_does_all_arrives_and_both_ends_close(
    seed: int,
    sizes: tuple[int, int],
    loss: float,
    duplicates: float,
    reordered: float,
    queue: int,
    sack: bool,
    gso_max: int,
    isn: int,
) -> None:
    chance = random.Random(seed)
    there, back = (chance.randbytes(size) for size in sizes)
    channel = Channel(queue=queue, loss=loss, duplicates=duplicates, reordered=reordered)
    network = Network(channel, there, back, seed=seed, sack=sack, isn=isn, gso_max=gso_max)
    network.run()
    caller, answerer = (side.connection for side in network.sides)
    given_up = (Event.TIMEOUT | Event.RESET) & (network.sides[0].events | network.sides[1].events)
    if given_up:
        assert loss > 0.05, "only a network that loses much may exhaust the tries of SYN or of the last FIN"
        return
    assert answerer.received == there
    assert caller.received == back
    assert {caller.state, answerer.state} <= ENDS
    assert caller.memory_in_use == answerer.memory_in_use == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_goodput_under_loss_is_what_the_reviewed_table_says(loss: float) -> None:
    # Any change of the code deals the dice anew: what chance does between two sets of seeds is let pass.
    assert row(loss) == pytest.approx(written_rates()[loss], rel=0.5, abs=0.05)


def test_the_table_says_how_it_was_made_and_falls_gently() -> None:
    assert DOCUMENT.read_text().startswith(HEADING)
    for column in range(3):
        rates = [written_rates()[loss][column] for loss in LOSSES]
        assert rates == sorted(rates, reverse=True)


def test_a_clean_link_needs_no_retransmission() -> None:
    data = bytes(500_000)
    network = Network(Channel(queue=1000), data, b"")
    network.run()
    assert network.sides[1].connection.received == data
    segments = -(-len(data) // 1448)
    assert network.sides[0].sent <= segments + 4, "SYN, its ACK, data, FIN and the last ACK"


def test_what_others_cut_into_segments_loses_no_more_time_than_segments_do() -> None:
    data = random.Random(0).randbytes(2_000_000)
    took = []
    for gso_max in (0, 65483):
        network = Network(Channel(loss=0.01), data, data, seed=1, gso_max=gso_max)
        took.append(network.run())
        assert all(side.connection.received == data for side in network.sides)
    assert took[1] < 1.5 * took[0]


def test_a_clean_link_that_cuts_segments_is_handed_few() -> None:
    data = bytes(2_000_000)
    network = Network(Channel(queue=1000), data, b"", gso_max=65483)
    network.run()
    assert network.sides[1].connection.received == data
    assert network.sides[0].sent < len(data) // 1448 // 2
