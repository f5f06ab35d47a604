"""What idle TCP flows cost in one worker: ``python -m bench.idle_flows``."""

from __future__ import annotations

import argparse
import contextlib
import resource
import select
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.echo import EchoServer
from bench.processes import pss
from tests.guests.host import make_host
from tests.guests.namespace import NamespaceGuest
from tests.guests.service import Service
from tests.guests.waiting import wait_for

MAC = "5a:94:ef:e4:0c:ee"
HOST = "192.168.127.254"
MAX_GROWTH = 20_000_000
"""Bytes that 10,000 flows may add to a worker; issue 2."""
BATCH = 250
"""Connections opened at a time, so that no queue of SYNs overflows."""
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class IdleFlows:
    """What was measured."""

    flows: int
    before: int
    """PSS of the worker in bytes, before any flow."""
    after: int


def measure(count: int) -> IdleFlows:
    """Open `count` connections from a namespace guest through one worker, and look at its memory."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * count + 1000,) * 2)  # this process has both ends of each flow
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
        opened = stack.enter_context(contextlib.ExitStack())
        for already in range(0, count, BATCH):
            _open(opened, guest, server.port, min(BATCH, count - already))
        wait_for(lambda: server.connections == count, CONNECT_TIMEOUT, "the host's end of the flows")
        wait_for(lambda: service.vm(MAC)["open_flows"] >= count, CONNECT_TIMEOUT, "the flows in /v1/vms")
        return IdleFlows(count, before, pss(vm["worker_pid"]))


def _open(opened: contextlib.ExitStack, guest: NamespaceGuest, port: int, count: int) -> None:
    """Open `count` connections at once and wait until all are established."""
    poller, waiting = select.poll(), {}
    with guest.namespace.entered():
        for _ in range(count):
            connection = opened.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex((HOST, port))
            poller.register(connection, select.POLLOUT)
            waiting[connection.fileno()] = connection
    while waiting:
        ready = poller.poll(CONNECT_TIMEOUT * 1000)
        assert ready, f"{len(waiting)} connections were not answered"
        for descriptor, _ in ready:
            error = waiting.pop(descriptor).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert error == 0, f"connect: error {error}"
            poller.unregister(descriptor)


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
