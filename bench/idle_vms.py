"""What an idle VM costs, and how fast a new one is served: ``python -m bench.idle_vms``.

Attaches VMs one after another as bare sockets, each asking for an address at once, and keeps them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.processes import cpu_seconds, pss
from tests.guests.bare import BareVm
from tests.guests.host import make_host
from tests.guests.service import Service

MAX_PSS = 8_000_000
"""Bytes a worker; issue 2."""
MAX_LATENCY = 0.050
"""s from accept to the first DHCP answer; issue 2."""


@dataclass(frozen=True, slots=True)
class IdleVms:
    """What was measured."""

    vms: int
    pss_mean: float
    """Bytes a worker; pages shared between workers count for a part in each."""
    pss_max: int
    latency_median: float
    """Seconds from connect to the first DHCP answer."""
    latency_max: float
    others_pss: int
    """Bytes of all other processes of the service."""
    idle_cpu: float
    """CPU seconds of the whole service for each second in which nothing happens; 0 where that was not measured."""


def measure(count: int, idle_seconds: float = 0.0) -> IdleVms:
    """Attach `count` VMs to a service of their own; then leave them alone for `idle_seconds`."""
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(make_host())
        service = stack.enter_context(Service(host))
        latencies = []
        for number in range(count):
            began = time.monotonic()
            vm = stack.enter_context(BareVm(service.link_path, f"5a:94:ef:00:{number >> 8:02x}:{number & 255:02x}"))
            vm.discover(number + 1)
            latencies.append(time.monotonic() - began)
        workers = [vm["worker_pid"] for vm in service.get("/v1/vms")["vms"]]
        assert len(workers) == count
        sizes = [pss(pid) for pid in workers]
        others = sum(pss(pid) for pid in service.processes() if pid not in workers)
        idle_cpu = _cpu_while_idle(service, idle_seconds) if idle_seconds else 0.0
        return IdleVms(
            count, statistics.mean(sizes), max(sizes), statistics.median(latencies), max(latencies), others, idle_cpu
        )


def _cpu_while_idle(service: Service, seconds: float) -> float:
    pids = service.processes()
    before = cpu_seconds(pids)
    time.sleep(seconds)
    return (cpu_seconds(pids) - before) / seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="bench.idle_vms", description=__doc__)
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = measure(options.vms)
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{found.vms} idle VMs")
        print(f"PSS of a worker:        mean {found.pss_mean / 1e6:.1f} MB, largest {found.pss_max / 1e6:.1f} MB")
        print(f"PSS of everything else: {found.others_pss / 1e6:.1f} MB")
        print(
            f"connect to DHCP answer: median {found.latency_median * 1e3:.1f} ms,"
            f" longest {found.latency_max * 1e3:.1f} ms"
        )
    return 0 if found.pss_mean <= MAX_PSS and found.latency_median <= MAX_LATENCY else 1


if __name__ == "__main__":
    sys.exit(main())
