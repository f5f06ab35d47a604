"""The results as a table, as an SVG of that table, and as JSON."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.figures import Comparison, Median, Run, Sample, compare, medians
from bench.rows import Row

TITLE = "Moorage beside its peers"
WIDTH = 150
"""Columns, where no terminal says how many there are."""


def number(value: float) -> str:
    """With the digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows: Sequence[Row], gateways: Sequence[str], found: Sequence[Median]) -> Table:
    """Medians with ratios. Below each value: CPU time (of the worker alone too, where there is more), then details."""
    by_place = {(median.row, median.gateway): median for median in found}
    shown = Table(title=TITLE, caption=CAPTION, caption_justify="left", title_justify="left", show_lines=True)
    shown.add_column("median of each")
    for gateway in gateways:
        shown.add_column(gateway, justify="right")
    for heading in ("x best peer", "x ceiling", "CPU: x less"):
        shown.add_column(heading, justify="right")
    for row in rows:
        here = {gateway: by_place[row.key, gateway] for gateway in gateways if (row.key, gateway) in by_place}
        if not here:
            continue
        samples = {gateway: median.sample for gateway, median in here.items() if median.sample}
        cells = [_cell(here.get(gateway)) for gateway in gateways]
        shown.add_row(_heading(row), *cells, *_ratios(compare(samples, row.lower_is_better)))
    return shown


CAPTION = (
    "Below a value: the gateway's CPU time in the row's second unit (Moorage: the whole service / the worker alone),"
    " then what else was seen.\nRatios are over 1 where Moorage is better; green: at least 1.2 times the best peer or"
    " 0.9 of the ceiling, with no more CPU time than the cheapest peer."
)


def _heading(row: Row) -> Text:
    units = f"{row.unit} ({row.cost_unit})" if row.cost_unit else row.unit
    return Text.assemble(row.title, "\n", (f"{row.key}: {units}", "dim"))


def _cell(median: Median | None) -> Text:
    if median is None:
        return Text("-", style="dim")
    if median.sample is None:
        return Text(f"failed: {'; '.join(median.errors)}", style="red")
    lines = [
        Text(number(median.sample.value), style="bold"),
        *(Text(line, style="dim") for line in _below(median.sample)),
    ]
    if median.errors:
        lines.append(Text(f"{len(median.errors)} failed: {'; '.join(median.errors)}", style="red"))
    return Text("\n").join(lines)


def _below(sample: Sample) -> list[str]:
    costs = [number(cost) for cost in (sample.cost, sample.worker_cost) if cost is not None]
    details = [f"{name} {number(value)}" for name, value in sample.details.items()]
    return [line for line in (f"({' / '.join(costs)})" if costs else "", *details) if line]


def _ratios(ratios: Comparison) -> list[Text]:
    style = "" if ratios.reached is None else "green" if ratios.reached else "yellow"
    each = (ratios.to_peer, ratios.to_ceiling, ratios.cost_to_peer)
    return [Text("-" if ratio is None else f"{ratio:.2f}", style=style) for ratio in each]


def svg(shown: Table) -> str:
    """The table drawn; it fetches nothing (rich would have a font downloaded)."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(shown)
    drawn = console.export_svg(title="make bench", unique_id="bench")
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)


def as_json(rows: Sequence[Row], runs: Sequence[Run], about: Mapping[str, object]) -> str:
    """Where and how it was measured, the medians with ratios, and every run."""
    found = medians(runs)
    measured = {run.row for run in runs}
    report = {
        "about": about,
        "rows": [_row(row, found) for row in rows if row.key in measured],
        "runs": [asdict(run) for run in runs],
    }
    return json.dumps(report, indent=1) + "\n"


def _row(row: Row, found: Sequence[Median]) -> dict[str, object]:
    here = [median for median in found if median.row == row.key]
    samples = {median.gateway: median.sample for median in here if median.sample}
    return {
        "row": row.key,
        "title": row.title,
        "unit": row.unit,
        "cost_unit": row.cost_unit,
        "medians": [asdict(median) for median in here],
        "ratios": asdict(compare(samples, row.lower_is_better)),
    }


def write(
    json_path: Path, svg_path: Path, rows: Sequence[Row], runs: Sequence[Run], about: Mapping[str, object]
) -> None:
    """Both files."""
    gateways = list(dict.fromkeys(run.gateway for run in runs))
    for path, text in ((json_path, as_json(rows, runs, about)), (svg_path, svg(table(rows, gateways, medians(runs))))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
