"""How runs are summed up, and gateways compared."""

from __future__ import annotations

import pytest

from bench.figures import Comparison, Run, Sample, compare, jain, medians


def test_equal_shares_are_fair_and_a_single_winner_is_not() -> None:
    assert jain([5, 5, 5, 5]) == 1
    assert jain([7, 0, 0, 0]) == 0.25
    assert jain([0, 0]) == 0


def test_every_number_is_the_median_of_its_own() -> None:
    runs = [Run("up", "us", Sample(value, cost, None, {"p50": value * 2})) for value, cost in ((9, 1), (1, 2), (5, 3))]
    (found,) = medians(runs)
    assert found.rounds == 3
    assert found.sample == Sample(5, 2, None, {"p50": 10})


def test_rows_and_gateways_stay_apart() -> None:
    runs = [Run("up", "a", Sample(1)), Run("up", "b", Sample(2)), Run("down", "a", Sample(3))]
    assert [(each.row, each.gateway) for each in medians(runs)] == [("up", "a"), ("up", "b"), ("down", "a")]


def test_a_failed_run_is_no_zero_and_its_reason_is_kept_once() -> None:
    runs = [Run("up", "a", error="no lease"), Run("up", "a", Sample(4)), Run("up", "a", error="no lease")]
    (found,) = medians(runs)
    assert (found.rounds, found.sample, found.errors) == (1, Sample(4), ("no lease",))
    (found,) = medians(runs[:1])
    assert (found.rounds, found.sample) == (0, None)


def test_we_are_held_against_the_best_peer_and_the_cheapest_which_may_be_two() -> None:
    found = compare(
        {"moorage": Sample(6, 0.5), "passt": Sample(2, 0.4), "libslirp": Sample(3, 4), "ceiling": Sample(8)}
    )
    assert found.to_peer == 2
    assert found.to_ceiling == 0.75
    assert found.cost_to_peer == pytest.approx(0.8)
    assert found.reached is False, "more CPU time than the cheapest peer"


def test_of_two_links_of_ours_the_faster_counts_and_the_other_is_no_peer() -> None:
    found = compare({"moorage": Sample(7, 1), "moorage-tap": Sample(20, 0.5), "pasta": Sample(5, 1)})
    assert (found.to_peer, found.cost_to_peer) == (4, 2)


@pytest.mark.parametrize(
    ("ours", "ceiling", "reached"), [(12, 20, True), (11, 20, False), (11, 12, True), (9, 10, True), (8.9, 10, False)]
)
def test_a_row_is_reached_far_ahead_of_peers_or_near_the_ceiling(ours: float, ceiling: float, reached: bool) -> None:
    samples = {"moorage": Sample(ours, 1), "passt": Sample(10, 1), "ceiling": Sample(ceiling, 0.5)}
    assert compare(samples).reached is reached


def test_a_peer_too_slow_for_the_clock_is_not_the_cheapest() -> None:
    found = compare({"moorage": Sample(6, 0.5), "passt": Sample(0.01, 0.0), "libslirp": Sample(3, 1)})
    assert found.cost_to_peer == 2


def test_where_less_is_better_the_ratio_still_grows_with_our_advantage() -> None:
    assert compare({"moorage": Sample(10), "passt": Sample(20)}, lower_is_better=True).to_peer == 2


def test_without_us_or_without_peers_there_is_nothing_to_compare() -> None:
    assert compare({"passt": Sample(1)}) == Comparison(None, None, None, None)
    assert compare({"moorage": Sample(1)}) == Comparison(None, None, None, None)
