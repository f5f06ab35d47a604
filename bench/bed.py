"""One measurement: a host, a gateway and a guest that nothing was measured on before.

Fresh namespaces each time, since what one run leaves behind (a guest with 14,000 sockets in TIME-WAIT) slows the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.client import Client, Unmeasurable
from bench.gateways import FORWARDED, GUEST_PORT, NEIGHBOUR_ADDRESS, Gateway, Link
from bench.processes import alive, cpu_seconds, idle_seconds, pss, thread_seconds
from tests.guests.host import make_host
from tests.guests.namespace import Namespace

SERVED = 7000
"""The first port of the host's server."""
IPERF = 5201
PATIENCE = 40.0
"""Seconds a client may take besides those it measures for."""
EPHEMERAL_PORTS = "1024 65535"
"""Room for 50,000 flows, and for connections that end and wait."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a client reported, and what the gateway cost meanwhile."""

    report: dict[str, Any]
    cpu: float
    """CPU seconds of all the gateway's processes."""
    worker_cpu: float | None
    """Of those that carry traffic; None: that is all of them."""
    memory: int
    """PSS in bytes of all of them, half-way; 0 where it was not asked for."""
    worker_memory: int
    busy: Mapping[str, float] = field(default_factory=dict)
    """What may have been the limit, in percent: the busiest thread of the guest's bridge (its time holds the guest
    kernel's work on what is written to the device), and what was left idle of all processors."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What processes have used up to a moment."""

    at: float
    gateway: float
    worker: float
    bridge: Mapping[str, float]
    """By thread."""
    idle: float


class Bed:
    """A gateway with a server on the host and, where ports are forwarded, one in the guest."""

    def __init__(self, gateway: Gateway, stack: contextlib.ExitStack) -> None:
        self.gateway = gateway
        self._stack = stack
        self._load = gateway.link.programs.path("load")
        self._pids, self._worker_pids = gateway.pids(), gateway.worker_pids()
        self._serve(gateway.host, "127.0.0.1", SERVED)
        if gateway.link.forwards:
            self._serve(gateway.guest, "0.0.0.0", GUEST_PORT)

    def from_guest(self, verb: str, *arguments: object, half_way: float = 0.0) -> Observation:
        """A client of ``load.c`` in the guest; memory is looked at `half_way` seconds after it began."""
        return self._observe(self.gateway.guest, half_way, verb, self.gateway.host_address, SERVED, *arguments)

    def into_guest(self, verb: str, *arguments: object) -> Observation:
        """A client on the host, through forwarded ports."""
        return self._observe(self.gateway.host, 0.0, verb, "127.0.0.1", FORWARDED, *arguments)

    def hold(self, flows: int) -> None:
        """Open flows from the guest that stay, idle. Raises Unmeasurable."""
        argv = (self._load, "hold", self.gateway.host_address, str(SERVED), str(flows))
        client = self._stack.enter_context(Client(self.gateway.guest.command(argv)))
        client.expect_begin(PATIENCE + flows / 500)

    def iperf(self, seconds: float, *options: str) -> Observation:
        """iperf3 between the guest and the host; `options` are its own. Raises Unmeasurable."""
        self.gateway.host.start("iperf3", "-s", "-B", "127.0.0.1", "-p", str(IPERF))
        return self._iperf(seconds, self.gateway.host_address, *options)

    def iperf_to_neighbour(self, seconds: float, *options: str) -> Observation:
        """iperf3 from the guest to another guest of the same network; `options` are its own. Raises Unmeasurable."""
        self.gateway.neighbour.start("iperf3", "-s", "-p", str(IPERF))
        return self._iperf(seconds, NEIGHBOUR_ADDRESS, *options)

    def _iperf(self, seconds: float, address: str, *options: str) -> Observation:
        argv = ["iperf3", "-J", "-c", address, "-p", str(IPERF), "-t", f"{seconds:g}", *options]
        deadline = time.monotonic() + 5
        while True:
            before = self._look()
            try:
                report = json.loads(self.gateway.guest.run(*argv, timeout=seconds + PATIENCE).stdout or "{}")
            except subprocess.TimeoutExpired:
                raise Unmeasurable(f"iperf3 did not end in {seconds + PATIENCE:g} s") from None
            if "error" not in report:
                return self._observation(report, before, (0, 0))
            if time.monotonic() > deadline:  # until then its server may not be there yet
                raise Unmeasurable(f"iperf3: {report['error']}")

    def memory(self) -> tuple[int, int]:
        """PSS in bytes: of all processes of the gateway, of those that carry traffic."""
        return sum(map(pss, self._pids)), sum(map(pss, self._worker_pids or self._pids))

    def _serve(self, where: Namespace, address: str, port: int) -> None:
        server = self._stack.enter_context(Client(where.command([self._load, "serve", address, str(port)])))
        server.expect_begin(5)

    def _observe(self, where: Namespace, half_way: float, *arguments: object) -> Observation:
        with Client(where.command([self._load, *map(str, arguments)])) as client:
            client.expect_begin(PATIENCE)
            before = self._look()
            memory = (0, 0)
            if half_way:
                time.sleep(half_way)
                memory = self.memory()
            return self._observation(client.report(PATIENCE), before, memory)

    def _observation(self, report: dict[str, Any], before: Clock, memory: tuple[int, int]) -> Observation:
        now = self._look()
        if any(not alive(pid) for pid in self._pids):
            raise Unmeasurable("a process of the gateway ended meanwhile")
        cpu = now.gateway - before.gateway
        worker = now.worker - before.worker if self._worker_pids else None
        return Observation(report, cpu, worker, *memory, _busy(before, now))

    def _look(self) -> Clock:
        return Clock(
            time.monotonic(),
            cpu_seconds(self._pids),
            cpu_seconds(self._worker_pids),
            thread_seconds(self.gateway.bridge_pid),
            idle_seconds(),
        )


def _busy(before: Clock, now: Clock) -> dict[str, float]:
    """In percent of the time between the two."""
    passed = now.at - before.at
    found = {"idle %": 100 * (now.idle - before.idle) / passed / (os.cpu_count() or 1)}
    if now.bridge:
        used = max(seconds - before.bridge.get(thread, 0.0) for thread, seconds in now.bridge.items())
        found["bridge %"] = 100 * used / passed
    return found


@contextlib.contextmanager
def make_bed(kind: type[Gateway], link: Link) -> Iterator[Bed]:
    """Everything new, and gone afterwards."""
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(make_host())
        _give_an_uplink(host)
        gateway = stack.enter_context(kind(host, link))
        for namespace in (host, gateway.guest):
            path = "/proc/sys/net/ipv4/ip_local_port_range"
            namespace.run("sh", "-c", f"echo {EPHEMERAL_PORTS} >{path}")
        yield Bed(gateway, stack.enter_context(contextlib.ExitStack()))


def _give_an_uplink(host: Namespace) -> None:
    """passt starts only on a host with a default route; nothing is sent there."""
    host.ip("tuntap", "add", "dev", "uplink", "mode", "tap")
    host.ip("address", "add", "10.78.0.1/24", "dev", "uplink")
    host.ip("link", "set", "uplink", "up")
    host.ip("route", "add", "default", "via", "10.78.0.2", "dev", "uplink")
