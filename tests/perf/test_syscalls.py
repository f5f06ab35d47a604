"""System calls and upcalls for bytes, transactions and connections of a namespace guest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.perf import ceilings
from tests.perf.ceilings import DOWN, UP, hold
from tests.perf.rig import Rig, ping_pong

pytestmark = [pytest.mark.guest, pytest.mark.alone]

MB = 1_000_000
SIZE = 64
"""MB of a transfer."""
TRANSACTIONS = 1000
CONNECTIONS = 200

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="not installed: strace (make packages)")


def test_the_first_connection_to_a_destination_asks_python_once_and_the_next_never(rig: Rig) -> None:
    with rig.listening() as server:
        hold(ceilings.FIRST_UPCALLS, rig.cost(lambda: rig.exchange(server)).upcalls)
        again = rig.cost(lambda: rig.exchange(server), CONNECTIONS)
    assert again.counters["tcp.opened_by_guest"] == CONNECTIONS
    hold(ceilings.LATER_UPCALLS, again.upcalls)
    hold(ceilings.CONNECTION, again.syscalls / CONNECTIONS)


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_transfer_takes_many_frames_with_each_system_call(rig: Rig, direction: str) -> None:
    cost = rig.cost(lambda: rig.transfer(SIZE * MB, to_guest=direction == DOWN))
    carried = cost.counters["flow.bytes_to_guest" if direction == DOWN else "flow.bytes_from_guest"]
    assert carried == SIZE * MB
    hold(ceilings.SYSCALLS.format(direction, rig.mtu), cost.syscalls / SIZE)
    hold(ceilings.WAITS.format(direction, rig.mtu), cost.waits / SIZE)


def test_a_ping_pong_takes_one_call_for_each_step(rig: Rig) -> None:
    with rig.listening() as server:
        ends = rig.connect(server)
        with ends[0], ends[1]:
            cost = rig.cost(lambda: ping_pong(*ends), TRANSACTIONS)
    assert cost.upcalls == 0
    hold(ceilings.PING_PONG, cost.syscalls / TRANSACTIONS)


@needs_strace
@pytest.mark.parametrize("direction", [UP, DOWN])
def test_the_engine_counts_the_system_calls_of_a_transfer(rig: Rig, direction: str, tmp_path: Path) -> None:
    calls, cost = rig.traced(lambda: rig.transfer(SIZE * MB, to_guest=direction == DOWN), tmp_path / "strace")
    hold(ceilings.UNCOUNTED, (calls - cost.syscalls) / SIZE)


@needs_strace
def test_a_connection_takes_few_system_calls_by_strace_too(rig: Rig, tmp_path: Path) -> None:
    with rig.listening() as server:
        rig.exchange(server)
        calls, cost = rig.traced(lambda: rig.exchange(server), tmp_path / "strace", CONNECTIONS)
    hold(ceilings.CONNECTION_TRACED, calls / CONNECTIONS)
    hold(ceilings.UNCOUNTED_CONNECTION, (calls - cost.syscalls) / CONNECTIONS)
