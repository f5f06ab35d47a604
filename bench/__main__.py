"""``make bench``: Moorage beside passt, libslirp and gvproxy, in turn, in one run."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench import machine
from bench.client import Unmeasurable
from bench.figures import Run, medians
from bench.gateways import GATEWAYS, Gateway, Link
from bench.hold_flows import allow_open_files
from bench.programs import Programs
from bench.report import WIDTH, number, table, write
from bench.rows import Row, rows

RESULT = Path("build") / "bench.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON and SVG. What could not be measured is in them, with its reason."""
    options = _parse(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    if os.geteuid() != 0:
        console.print("The benchmark makes network namespaces and tap devices: run it as root.")
        return 1
    allow_open_files()
    chosen = [
        row for row in rows() if row.is_named(options.only or [row.key]) and row.mtu in (options.mtu or [row.mtu])
    ]
    kinds = [kind for kind in GATEWAYS if kind.name in options.gateways]
    about = machine.describe() | {"rounds": options.rounds, "seconds": options.seconds, "queue": options.queue}
    console.print(machine.summary(about))
    runs = []
    for run in measure(chosen, kinds, options.rounds, options.seconds, options.queue):
        runs.append(run)
        console.print(_line(run), markup=False, highlight=False, soft_wrap=True)
        write(options.json, options.svg, chosen, runs, about)
    console.print(table(chosen, [kind.name for kind in kinds], medians(runs)))
    console.print(f"Every run: {options.json}; the table: {options.svg}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    installed = [kind.name for kind in GATEWAYS if kind.is_installed()]
    known = [row.key for row in rows()]
    parser.add_argument("--gateways", type=_words, default=installed, help=f"of {', '.join(installed)}")
    parser.add_argument("--only", type=_words, help=f"rows, or groups of them, of {', '.join(known)}")
    parser.add_argument("--mtu", type=lambda text: [int(word) for word in _words(text)], help="rows of these MTUs only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--queue", type=int, default=1000, help="packets, of the guest's tap device")
    parser.add_argument("--json", type=Path, default=RESULT, help=f"default: {RESULT}")
    parser.add_argument("--svg", type=Path, default=RESULT.with_suffix(".svg"))
    options = parser.parse_args(arguments)
    if strange := set(options.gateways) - set(installed):
        parser.error(
            f"--gateways: {', '.join(sorted(strange))} cannot be measured here; there are {', '.join(installed)}"
        )
    if strange := {name for name in options.only or [] if not any(row.is_named([name]) for row in rows())}:
        parser.error(f"--only: no row {', '.join(sorted(strange))}; there are {', '.join(known)}")
    return options


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def measure(
    chosen: Sequence[Row], kinds: Sequence[type[Gateway]], rounds: int, seconds: float, queue: int
) -> Iterator[Run]:
    """Every run as it ends. The gateways take turns, so that what else the machine does hits all of them."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        programs = Programs(directory)
        for row in chosen:
            link = Link(programs, directory, row.mtu, row.queue or queue)
            for _ in range(rounds):
                for kind in kinds:
                    if row.is_for(kind):
                        yield _run(row, kind, link, seconds)


def _run(row: Row, kind: type[Gateway], link: Link, seconds: float) -> Run:
    try:
        return Run(row.key, kind.name, row.measure(kind, link, seconds))
    except (AssertionError, OSError, KeyError, Unmeasurable, subprocess.SubprocessError) as error:
        reason = str(error).strip() or repr(error)
        return Run(row.key, kind.name, error=reason.splitlines()[0])


def _line(run: Run) -> str:
    start = f"{run.row:20s} {run.gateway:12s}"
    if run.sample is None:
        return f"{start} failed: {run.error}"
    cost = f"  CPU {number(run.sample.cost)}" if run.sample.cost is not None else ""
    details = "".join(f"  {name} {number(value)}" for name, value in run.sample.details.items())
    return f"{start} {number(run.sample.value):>9s}{cost}{details}"


if __name__ == "__main__":
    sys.exit(main())
