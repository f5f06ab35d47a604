"""The timing wheel: never late by more than it says, and quiet while nothing is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.timers import TimerWheel

MS = 1_000
S = 1_000_000
SLOT = 8_192
"""us"""
START = 5 * S


def run(wheel: TimerWheel, until: int) -> tuple[list[tuple[int, int]], int]:
    """Look when the wheel says so, until then: (time, timer) of all that came up, and how often we looked."""
    seen = []
    looks = 0
    while (now := wheel.next()) and now <= until:
        looks += 1
        seen += [(now, which) for which in wheel.expired(now)]
    return seen, looks


def test_an_empty_wheel_asks_for_no_look() -> None:
    assert TimerWheel(1, START).next() == 0


@given(st.integers(1, 8 * S - 2 * SLOT), st.integers(0, 40 * S))
def test_a_timer_comes_up_at_its_deadline_and_within_two_slots(delay: int, start: int) -> None:
    wheel = TimerWheel(1, start)
    wheel.arm(0, start + delay)
    [(at, _)], _ = run(wheel, start + delay + S)
    assert start + delay <= at <= start + delay + 2 * SLOT


@pytest.mark.parametrize("delay", [9 * S, 15 * S, 30 * S, 33 * S])
def test_a_far_timer_comes_up_within_a_second_of_its_deadline_or_early_at_the_end_of_the_wheel(delay: int) -> None:
    wheel = TimerWheel(1, START)
    wheel.arm(0, START + delay)
    [(at, _)], _ = run(wheel, START + 60 * S)
    assert min(START + delay, START + 32 * S) <= at <= START + delay + S + 2 * SLOT


def test_a_deadline_beyond_the_wheel_comes_up_for_another_turn() -> None:
    wheel = TimerWheel(1, START)
    wheel.arm(0, START + 7200 * S)
    [(at, _)], _ = run(wheel, START + 60 * S)
    assert START + 30 * S < at < START + 35 * S


def test_a_deadline_that_moves_later_costs_nothing_until_the_old_one_comes_up() -> None:
    wheel = TimerWheel(1, START)
    wheel.arm(0, START + 200 * MS)
    wheel.arm(0, START + 900 * MS)
    [(at, _)], _ = run(wheel, START + 2 * S)
    assert at < START + 250 * MS


def test_a_deadline_that_moves_earlier_counts_at_once() -> None:
    wheel = TimerWheel(1, START)
    wheel.arm(0, START + 900 * MS)
    wheel.arm(0, START + 100 * MS)
    [(at, _)], _ = run(wheel, START + 2 * S)
    assert at <= START + 100 * MS + 2 * SLOT


def test_a_disarmed_timer_does_not_come_up() -> None:
    wheel = TimerWheel(2, START)
    wheel.arm(0, START + 100 * MS)
    wheel.arm(1, START + 100 * MS)
    wheel.disarm(0)
    seen, _ = run(wheel, START + S)
    assert [which for _, which in seen] == [1]


def test_a_thousand_idle_flows_wake_the_worker_about_once_a_second() -> None:
    wheel = TimerWheel(1_000, START)
    for which in range(1_000):
        wheel.arm(which, START + 20 * S + which * 10 * MS)  # deadlines all over ten seconds
    seen, looks = run(wheel, START + 60 * S)
    assert len(seen) == 1_000
    assert looks <= 15


def test_a_deadline_that_has_passed_comes_up_at_the_next_slot() -> None:
    wheel = TimerWheel(1, START)
    wheel.arm(0, START - S)
    assert wheel.expired(START + 2 * SLOT) == [0]


def test_a_long_sleep_brings_up_everything_at_once() -> None:
    wheel = TimerWheel(3, START)
    for which, delay in enumerate((100 * MS, 5 * S, 20 * S)):
        wheel.arm(which, START + delay)
    assert sorted(wheel.expired(START + 3600 * S)) == [0, 1, 2]
