"""``make bench``: Moorage beside passt and slirp4netns."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from bench.gateways import GATEWAYS
from bench.throughput import measure, report, table

RESULT = Path("build") / "bench.json"


def main() -> int:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    known = [gateway.name for gateway in GATEWAYS]
    parser.add_argument("--gateways", nargs="+", choices=known, default=known)
    parser.add_argument("--mtu", nargs="+", type=int, default=[1500, 65520])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--queue", type=int, default=1000, help="packets, of the guest's tap device")
    parser.add_argument("--json", type=Path, default=RESULT, help=f"default: {RESULT}")
    options = parser.parse_args()
    console = Console()
    if os.geteuid() != 0:
        console.print("The benchmark makes network namespaces and tap devices: run it as root.")
        return 1
    figures = []
    for figure in measure(options.gateways, options.mtu, options.rounds, options.seconds, options.queue):
        figures.append(figure)
        console.print(
            f"mtu {figure.mtu:5d} {figure.direction:4s} {figure.gateway:11s}"
            f" {figure.gbit_per_second:6.2f} Gbit/s {figure.cpu_seconds_per_gb:6.2f} CPU s/GB"
        )
    console.print(table(figures))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report(figures), indent=2) + "\n")
    console.print(f"Every run: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
