"""How figures are summed up."""

from __future__ import annotations

import json

from rich.console import Console

from bench.throughput import Figure, medians, report, table

FIGURES = [
    *(Figure("moorage", 1500, "up", rate, 1.0) for rate in (9.0, 1.0, 5.0)),
    *(Figure("passt", 1500, "up", rate, 2.0) for rate in (4.0, 3.0, 2.0)),
]


def test_the_median_of_the_rounds_counts() -> None:
    assert [(each.gateway, each.gbit_per_second) for each in medians(FIGURES)] == [("moorage", 5.0), ("passt", 3.0)]


def test_the_table_lists_the_fastest_first() -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table(FIGURES))
    shown = captured.get()
    assert shown.index("moorage") < shown.index("passt")


def test_the_report_keeps_every_run() -> None:
    found = json.loads(json.dumps(report(FIGURES)))
    assert len(found["runs"]) == 6
    assert len(found["medians"]) == 2
