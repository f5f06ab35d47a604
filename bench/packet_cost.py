"""Where a worker's time goes, by its own counters: ``python -m bench.packet_cost``.

CPU time in its code and in the kernel, segments, system calls of each kind, and times Python had to think; for each MB,
connection or transaction. Counts hardly depend on the machine; what a table of medians shows as slow, they explain.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.bed import make_bed
from bench.gateways import Link, Moorage
from bench.processes import user_and_system
from bench.programs import Programs

SHOWN = {
    "segments in": "tcp.rx_segments",
    "out": "tcp.tx_segments",
    "wait": "syscalls.wait",
    "control": "syscalls.control",
    "link recv": "syscalls.link_recv",
    "link send": "syscalls.link_send",
    "host recv": "syscalls.host_recv",
    "host send": "syscalls.host_send",
    "upcalls": "upcalls.queued",
}
"""Heading: counter."""


@dataclass(frozen=True, slots=True)
class Case:
    """What the guest does, and what is counted as one."""

    title: str
    client: tuple[str, ...]
    """Of ``load.c``: verb and what comes after the seconds."""
    one: str
    """What figures are for."""
    counter: str
    amount: int = 1
    """So many of `counter` are one."""
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one: microseconds of CPU time, and counts in the order of `SHOWN`."""

    user_us: float
    system_us: float
    counts: tuple[float, ...]


MB = 1_000_000
CASES = (
    *(
        Case(f"MTU {mtu}, {words}", ("stream", "1", direction), "MB", f"flow.bytes_{way}_guest", MB, mtu)
        for mtu in (1500, 65520)
        for direction, way, words in (("up", "from", "guest to host"), ("down", "to", "host to guest"))
    ),
    Case("connect, 1 byte each way, close", ("crr", "8"), "connection", "tcp.opened_by_guest"),
    Case("1-byte ping-pong", ("rr", "tcp"), "transaction", "flow.bytes_from_guest"),
)


def cost(case: Case, before: Mapping[str, int], after: Mapping[str, int], user: float, system: float) -> Cost:
    """From counters and CPU seconds."""
    grown = {name: after.get(name, 0) - before.get(name, 0) for name in (case.counter, *SHOWN.values())}
    ones = grown[case.counter] / case.amount
    assert ones > 0, f"nothing counted as {case.counter}"
    return Cost(user * 1e6 / ones, system * 1e6 / ones, tuple(grown[name] / ones for name in SHOWN.values()))


def measure(case: Case, programs: Programs, seconds: float) -> Cost:
    """Of Moorage with nothing else to do."""
    with make_bed(Moorage, Link(programs, programs.directory, case.mtu, queue=1000)) as bed:
        gateway = bed.gateway
        assert isinstance(gateway, Moorage)
        (worker,) = gateway.worker_pids()
        before, (user, system) = gateway.counters(), user_and_system(worker)
        verb, *rest = case.client
        bed.from_guest(verb, f"{seconds:g}", *rest)
        user_now, system_now = user_and_system(worker)
        return cost(case, before, gateway.counters(), user_now - user, system_now - system)


def table(costs: Sequence[tuple[Case, Cost]]) -> Table:
    """For people."""
    shown = Table(title="What a worker does for each MB, connection or transaction")
    shown.add_column("")
    for heading in ("each", "user us", "kernel us", *SHOWN):
        shown.add_column(heading, justify="right")
    for case, each in costs:
        counts = (f"{count:.2f}" if count < 100 else f"{count:.0f}" for count in each.counts)
        shown.add_row(case.title, case.one, f"{each.user_us:.1f}", f"{each.system_us:.1f}", *counts)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case once, and print."""
    parser = argparse.ArgumentParser(prog="bench.packet_cost", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder:
        Path(folder).chmod(0o755)
        found = [(case, measure(case, Programs(Path(folder)), options.seconds)) for case in CASES]
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
