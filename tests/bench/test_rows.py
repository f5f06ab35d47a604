"""What is made of what the load programs report."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bed import Observation
from bench.client import Unmeasurable
from bench.gateways import GATEWAYS, Ceiling, Gvproxy, Moorage, MoorageTap, Passt, Pasta
from bench.rows import bulk, datagrams, iperf, memory, rows, transactions

BY_KEY = {row.key: row for row in rows()}


def seen(report: dict[str, Any], cpu: float = 1.0, worker_cpu: float | None = None) -> Observation:
    return Observation(report, cpu, worker_cpu, memory=30_000_000, worker_memory=8_000_000)


def test_bulk_data_is_gigabits_with_cpu_time_for_each_gigabyte() -> None:
    sample = bulk(seen({"seconds": 2.0, "bytes": [10**9, 10**9]}, cpu=1.0, worker_cpu=0.5))
    assert (sample.value, sample.cost, sample.worker_cost) == (8.0, 0.5, 0.25)
    assert sample.details == {"Jain": 1.0}


def test_one_flow_has_no_fairness() -> None:
    assert bulk(seen({"seconds": 1.0, "bytes": [10**9]})).details == {}


def test_what_may_have_been_the_limit_is_told_with_the_figure() -> None:
    report = {"seconds": 1.0, "bytes": [10**9]}
    told = Observation(report, 1.0, None, memory=0, worker_memory=0, busy={"idle %": 10.0, "bridge %": 99.0})
    assert bulk(told).details == {"idle %": 10.0, "bridge %": 99.0}


def test_nothing_that_arrived_is_a_failure_and_not_a_zero() -> None:
    for take, report in (
        (bulk, {"seconds": 1.0, "bytes": [0, 0]}),
        (memory, {"seconds": 1.0, "bytes": [0]}),
        (iperf, {"end": {"sum_received": {"bytes": 0, "bits_per_second": 0}}}),
        (datagrams, {"delivered": 0, "sent": 9, "seconds": 0.0}),
    ):
        with pytest.raises(Unmeasurable):
            take(seen(report))


def test_iperf_is_taken_at_its_receiving_end() -> None:
    sample = iperf(seen({"end": {"sum_received": {"bytes": 5 * 10**8, "bits_per_second": 4e9}}}, cpu=1.0))
    assert (sample.value, sample.cost) == (4.0, 2.0)


def test_transactions_cost_microseconds_each() -> None:
    sample = transactions(
        seen({"count": 10_000, "errors": 0, "seconds": 2.0, "p50_us": 80.0, "p99_us": 200.0}, cpu=0.5)
    )
    assert (sample.value, sample.cost) == (5000.0, 50.0)
    assert sample.details == {"p50 us": 80.0, "p99 us": 200.0}


def test_a_few_failed_connections_are_borne_and_many_are_not() -> None:
    report = {"count": 1000, "seconds": 1.0, "p50_us": 1.0, "p99_us": 1.0}
    assert transactions(seen(report | {"errors": 10})).value == 1000
    with pytest.raises(Unmeasurable, match="11 failed"):
        transactions(seen(report | {"errors": 11}))


def test_lost_datagrams_are_told_beside_those_delivered() -> None:
    sample = datagrams(seen({"delivered": 250_000, "sent": 1_000_000, "seconds": 2.5}, cpu=0.5))
    assert (sample.value, sample.cost, sample.details) == (100_000, 2.0, {"lost %": 75.0})


def test_memory_is_that_of_all_processes_and_of_the_worker() -> None:
    sample = memory(seen({"seconds": 1.0, "bytes": [1]}, worker_cpu=0.0))
    assert (sample.value, sample.details) == (30.0, {"worker MB": 8.0})


def test_rows_are_named_singly_or_by_group() -> None:
    assert BY_KEY["up/1500/8"].is_named(["up/1500/8"])
    assert BY_KEY["up/1500/8"].is_named(["rr", "up"])
    assert not BY_KEY["up/1500/8"].is_named(["up/15"])
    assert len(BY_KEY) == len(rows()), "a key names one row"


def test_gateways_get_only_the_rows_they_can_carry() -> None:
    assert BY_KEY["rr/tcp"].is_for(Ceiling)
    assert not BY_KEY["rr/udp"].is_for(Ceiling)
    assert not BY_KEY["forward/crr"].is_for(Ceiling)
    assert BY_KEY["vms/10"].is_for(Moorage)
    assert not BY_KEY["vms/10"].is_for(Passt)
    assert all(row.is_for(Moorage) for row in rows())
    assert BY_KEY["tap/1500/up/1"].is_for(MoorageTap)
    assert BY_KEY["tap/rr"].is_for(Pasta)
    assert not BY_KEY["up/1500/1"].is_for(Pasta)
    assert not BY_KEY["tap/rr"].is_for(Passt)
    assert {kind.name for kind in GATEWAYS} >= {Moorage.name, Passt.name, Gvproxy.name}
