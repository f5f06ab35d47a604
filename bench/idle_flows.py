"""What idle TCP flows cost in one worker: ``python -m bench.idle_flows``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.echo import EchoServer
from bench.hold_flows import allow_open_files
from bench.processes import pss
from tests.guests.host import make_host
from tests.guests.namespace import NamespaceGuest
from tests.guests.service import Service
from tests.guests.waiting import wait_for

MAC = "5a:94:ef:e4:0c:ee"
HOST = "192.168.127.254"
MAX_GROWTH = 20_000_000
"""Bytes that 10,000 flows may add to a worker; issue 2."""
OPEN_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class IdleFlows:
    """What was measured."""

    flows: int
    before: int
    """PSS of the worker in bytes, before any flow."""
    after: int


def measure(count: int) -> IdleFlows:
    """Open `count` connections from a namespace guest through one worker, and look at its memory."""
    allow_open_files()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moorage-bench-")))
        host = stack.enter_context(make_host())
        service = stack.enter_context(Service(host))
        guest = NamespaceGuest(directory, service.unix_url, MAC, Path("unused"), host)
        stack.callback(guest.close)
        guest.configure()
        server = stack.enter_context(EchoServer(host, "127.0.0.1"))
        vm = service.vm(MAC)
        before = pss(vm["worker_pid"])
        guest.namespace.start(sys.executable, "-m", "bench.hold_flows", HOST, str(server.port), str(count))
        wait_for(lambda: server.connections == count, OPEN_TIMEOUT, "the host's end of the flows")
        wait_for(lambda: service.vm(MAC)["open_flows"] >= count, OPEN_TIMEOUT, "the flows in /v1/vms")
        return IdleFlows(count, before, pss(vm["worker_pid"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where the bar is missed."""
    parser = argparse.ArgumentParser(prog="bench.idle_flows", description=__doc__)
    parser.add_argument("--flows", type=int, default=10_000)
    found = measure(parser.parse_args(arguments).flows)
    grown = found.after - found.before
    print(f"{found.flows} idle flows: worker {found.before / 1e6:.1f} MB -> {found.after / 1e6:.1f} MB PSS")
    print(f"that is {grown / 1e6:.1f} MB, {grown / found.flows:.0f} bytes a flow")
    return 0 if grown <= MAX_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
