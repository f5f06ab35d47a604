"""TCP throughput of each gateway, by iperf3 from a namespace guest, and what it costs in CPU time.

Gateways take turns within every round, so that whatever else the machine does hits all of them; medians are shown.

A tap device drops what its queue does not hold, 1,000 packets unless told otherwise, where a VM's virtio ring would
make the guest wait: a gateway that offers the guest a larger window than that loses packets at MTU 1500 (passt does).
A longer queue shows it without this handicap.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from bench.gateways import GATEWAYS, Gateway, build_bridge
from bench.processes import cpu_seconds
from tests.guests.host import make_host
from tests.guests.namespace import Namespace
from tests.guests.waiting import wait_for

PORT = 5201


@dataclass(frozen=True, slots=True)
class Figure:
    """One run of iperf3."""

    gateway: str
    mtu: int
    direction: str
    """``up``: from the guest to the host; ``down``: the reverse."""
    gbit_per_second: float
    cpu_seconds_per_gb: float
    """Of all the gateway's processes; a GB is 10^9 bytes."""


def measure(names: Sequence[str], mtus: Sequence[int], rounds: int, seconds: float, queue: int) -> Iterator[Figure]:
    """Every figure as it is taken."""
    chosen = [gateway for gateway in GATEWAYS if gateway.name in names]
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder, make_host() as host:
        directory = Path(folder)
        directory.chmod(0o755)
        bridge = build_bridge(directory)
        _give_an_uplink(host)
        host.start("iperf3", "-s", "-B", "127.0.0.1", "-p", str(PORT))
        for mtu in mtus:
            for _ in range(rounds):
                for kind in chosen:
                    with kind(host, directory, bridge, mtu, queue) as gateway:
                        for direction in ("up", "down"):
                            yield _run(gateway, direction, seconds)


def _give_an_uplink(host: Namespace) -> None:
    """passt starts only on a host with a default route; nothing is sent there."""
    host.ip("tuntap", "add", "dev", "uplink", "mode", "tap")
    host.ip("address", "add", "10.78.0.1/24", "dev", "uplink")
    host.ip("link", "set", "uplink", "up")
    host.ip("route", "add", "default", "via", "10.78.0.2", "dev", "uplink")


def _run(gateway: Gateway, direction: str, seconds: float) -> Figure:
    client = ["iperf3", "-J", "-c", gateway.host_address, "-p", str(PORT), "-t", f"{seconds:g}"]
    client += ["-R"] if direction == "down" else []

    def attempt() -> dict[str, float]:
        return _summary(gateway.guest.run(*client, timeout=seconds + 30).stdout)

    pids = gateway.pids()
    before = cpu_seconds(pids)
    end = wait_for(attempt, 3 * seconds + 10, f"iperf3 through {gateway.name}")
    spent = cpu_seconds(pids) - before
    return Figure(
        gateway.name, gateway.mtu, direction, end["bits_per_second"] / 1e9, spent / max(end["bytes"] / 1e9, 1e-9)
    )


def _summary(output: str) -> dict[str, float]:
    """What iperf3 received; empty where it could not run (its server is not there yet, or busy with the last)."""
    report = json.loads(output) if output else {}
    found: dict[str, float] = report.get("end", {}).get("sum_received", {})
    return found


def medians(figures: Sequence[Figure]) -> list[Figure]:
    """One figure for each gateway, MTU and direction."""
    runs: dict[tuple[int, str, str], list[Figure]] = {}
    for figure in figures:
        runs.setdefault((figure.mtu, figure.direction, figure.gateway), []).append(figure)
    return [
        Figure(
            gateway,
            mtu,
            direction,
            statistics.median(run.gbit_per_second for run in same),
            statistics.median(run.cpu_seconds_per_gb for run in same),
        )
        for (mtu, direction, gateway), same in runs.items()
    ]


def table(figures: Sequence[Figure]) -> Table:
    """The medians, for people."""
    shown = Table(title="TCP throughput of a namespace guest (iperf3, median)")
    shown.add_column("MTU", justify="right")
    shown.add_column("direction")
    shown.add_column("gateway")
    shown.add_column("Gbit/s", justify="right")
    shown.add_column("CPU s/GB", justify="right")
    order = sorted(medians(figures), key=lambda each: (each.mtu, each.direction != "up", -each.gbit_per_second))
    previous = None
    for each in order:
        if previous not in (None, (each.mtu, each.direction)):
            shown.add_section()
        previous = (each.mtu, each.direction)
        figures_shown = (f"{each.gbit_per_second:.2f}", f"{each.cpu_seconds_per_gb:.2f}")
        shown.add_row(str(each.mtu), each.direction, each.gateway, *figures_shown)
    return shown


def report(figures: Sequence[Figure]) -> dict[str, object]:
    """Medians and every run, for programs."""
    return {"medians": [asdict(each) for each in medians(figures)], "runs": [asdict(each) for each in figures]}
