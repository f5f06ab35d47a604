"""What people and programs are shown."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console

from bench.figures import Run, Sample, medians
from bench.report import number, svg, table, write
from bench.rows import rows

ROWS = [row for row in rows() if row.key in ("up/1500/1", "rr/tcp", "crr")]
RUNS = [
    Run("up/1500/1", "moorage", Sample(6.0, 0.5, 0.4)),
    Run("up/1500/1", "passt", Sample(1.5, 0.7)),
    Run("up/1500/1", "ceiling", Sample(8.0, 0.3)),
    Run("rr/tcp", "moorage", Sample(12_345.0, 30.0, 30.0, {"p50 us": 81.5})),
    Run("rr/tcp", "passt", error="waited 10 s in vain for passt's socket"),
]
GATEWAYS = ("moorage", "passt", "ceiling")


def shown() -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table(ROWS, GATEWAYS, medians(RUNS)))
    return captured.get()


def test_numbers_have_the_digits_that_mean_something() -> None:
    assert [number(value) for value in (0.123, 9.87, 98.7, 987.6, 9876.5)] == ["0.12", "9.87", "98.7", "988", "9,876"]


def test_the_table_has_values_costs_details_and_ratios() -> None:
    text = shown()
    for expected in ("6.00", "(0.50 / 0.40)", "4.00", "0.75", "1.40", "12,345", "p50 us 81.5"):
        assert expected in text


def test_a_failed_figure_is_shown_with_its_reason() -> None:
    assert "failed: waited" in shown()


def test_rows_that_were_not_measured_are_left_out() -> None:
    assert "connect, 1 byte each way" not in shown()


def test_the_drawing_is_valid_and_fetches_nothing() -> None:
    drawn = svg(table(ROWS, GATEWAYS, medians(RUNS)))
    assert "12,345" in "".join(ElementTree.fromstring(drawn).itertext())
    assert "url(http" not in drawn
    assert "@font-face" not in drawn


def test_the_file_keeps_where_it_was_measured_the_medians_and_every_run(tmp_path: Path) -> None:
    json_path, svg_path = tmp_path / "new" / "bench.json", tmp_path / "bench.svg"
    write(json_path, svg_path, ROWS, RUNS, {"kernel": "6.1"})
    found = json.loads(json_path.read_text())
    assert found["about"] == {"kernel": "6.1"}
    assert [row["row"] for row in found["rows"]] == ["up/1500/1", "rr/tcp"]
    assert found["rows"][0]["ratios"] == {"to_peer": 4.0, "to_ceiling": 0.75, "cost_to_peer": 1.4, "reached": True}
    assert len(found["runs"]) == len(RUNS)
    assert found["runs"][-1]["error"].startswith("waited")
    assert svg_path.read_text().startswith("<svg")
