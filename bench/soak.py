"""A mixed run that must leave nothing behind: ``python -m bench.soak --minutes 10``.

Threads open connections from the guest, and to it through a forwarded port, and end each in one of the ways that
connections end in real life; then everything is let go, and the worker must be as it was: no flow, no descriptor and
no memory more than before. A first, shorter run warms the worker up, since pools are filled once.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.echo import EchoServer
from bench.processes import pss
from tests.guests.host import NO_NETWORK, make_host
from tests.guests.namespace import Namespace, NamespaceGuest
from tests.guests.servers import udp_echo
from tests.guests.service import Service
from tests.guests.waiting import wait_for

MAC = "5a:94:ef:e4:0c:ee"
HOST = "192.168.127.254"
FORWARDED = 7000
THREADS = 4
"""For each direction."""
SERVER_PATIENCE = 3.0
"""Seconds after which the server closes a connection that its client abandoned."""
CLIENT_TIMEOUT = 10.0
DRAIN_TIMEOUT = 30.0
"""Seconds until the last flow must be gone; abandoned ones end with the server's patience."""
UDP_DRAIN_TIMEOUT = 200.0
"""UDP has no end but silence (RFC 4787 REQ-5: not under 120 s)."""
MAX_GROWTH = 1_000_000
"""Bytes of PSS that a worker may have more after the run than after the warm-up: noise."""
TCP_REPAIR = 19
"""linux/tcp.h: a socket closed in repair mode sends nothing, as if its machine had vanished."""
MESSAGE = random.Random(1).randbytes(20_000)

Fate = Callable[[socket.socket], None]


@dataclass(frozen=True, slots=True)
class Soak:
    """What was seen."""

    ended: dict[str, int]
    """Connections by how they ended."""
    before: Worker
    after: Worker

    @property
    def growth(self) -> int:
        """Bytes of PSS that stayed."""
        return self.after.pss - self.before.pss


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker holds."""

    flows: int
    open_files: int
    pss: int


def _finish(connection: socket.socket) -> None:
    connection.sendall(MESSAGE)
    _expect(connection, len(MESSAGE))


def _half_close(connection: socket.socket) -> None:
    connection.sendall(MESSAGE)
    connection.shutdown(socket.SHUT_WR)
    _expect(connection, len(MESSAGE))
    assert connection.recv(1) == b"", "data after the end"


def _reset(connection: socket.socket) -> None:
    connection.sendall(MESSAGE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _abandon(connection: socket.socket) -> None:
    connection.sendall(MESSAGE[:100])
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)


def _leave_unread(connection: socket.socket) -> None:
    """Close with data unread, which the kernel makes a reset."""
    connection.sendall(MESSAGE)
    connection.recv(1)


FATES: dict[str, Fate] = {
    "finished": _finish,
    "half-closed": _half_close,
    "reset": _reset,
    "abandoned": _abandon,
    "left unread": _leave_unread,
}


def _expect(connection: socket.socket, size: int) -> None:
    received = b""
    while len(received) < size:
        data = connection.recv(65536)
        assert data, f"the connection ended after {len(received)} of {size} bytes"
        received += data
    assert received == MESSAGE[:size], "other bytes came back than were sent"


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


class Traffic:
    """Threads that live connections until they are told to stop."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def tcp(self, namespace: Namespace, address: tuple[str, int]) -> None:
        """Connections from `namespace` to an echo server."""
        for seed in range(THREADS):
            chance = random.Random(seed)
            self._start(namespace, partial(self._connect, chance, address))

    def udp(self, namespace: Namespace, address: tuple[str, int]) -> None:
        """Datagrams from `namespace` to an echo server, each from a port of its own."""
        self._start(namespace, partial(self._datagram, address))

    def refused(self, namespace: Namespace) -> None:
        """Connections that nobody takes."""
        for address in ((HOST, 9), (NO_NETWORK, 80)):
            self._start(namespace, partial(self._refused, address))

    def stop(self) -> None:
        """End all threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(CLIENT_TIMEOUT + 5)

    def _start(self, namespace: Namespace, live: Callable[[], None]) -> None:
        def repeat() -> None:
            with namespace.entered():
                while not self._stop.wait(0.002):
                    try:
                        live()
                    except (OSError, AssertionError) as error:
                        self.errors.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=repeat)
        thread.start()
        self._threads.append(thread)

    def _connect(self, chance: random.Random, address: tuple[str, int]) -> None:
        fate = chance.choice(list(FATES))
        with socket.create_connection(address, CLIENT_TIMEOUT) as connection:
            FATES[fate](connection)
        self.ended[fate] += 1

    def _datagram(self, address: tuple[str, int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(CLIENT_TIMEOUT)
            sock.connect(address)
            sock.send(MESSAGE[:3000])
            assert sock.recv(65536) == MESSAGE[:3000], "another datagram came back than was sent"
        self.ended["datagram"] += 1
        self._stop.wait(0.05)

    def _refused(self, address: tuple[str, int]) -> None:
        with socket.socket() as sock:
            sock.settimeout(CLIENT_TIMEOUT)
            # Linux may report 0 for a connection that an ICMP error has just ended: ask again.
            assert sock.connect_ex(address) != 0 or not _is_connected(sock), f"{address} took the connection"
        self.ended["refused"] += 1


def soak(seconds: float, udp: bool = True) -> Soak:
    """Run for about so long. Raises AssertionError where a connection went wrong or something is left."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moorage-soak-")))
        host = stack.enter_context(make_host())
        service = stack.enter_context(Service(host))
        guest = NamespaceGuest(directory, service.unix_url, MAC, Path("unused"), host)
        stack.callback(guest.close)
        guest.configure()
        there = stack.enter_context(EchoServer(host, "127.0.0.1", idle=SERVER_PATIENCE))
        here = stack.enter_context(EchoServer(guest.namespace, guest.lease.ip, 7, idle=SERVER_PATIENCE))
        echo_port = stack.enter_context(udp_echo(host))
        service.expose(f"127.0.0.1:{FORWARDED}", f"{guest.lease.ip}:7")

        def run(duration: float) -> tuple[Worker, dict[str, int]]:
            traffic = Traffic()
            traffic.tcp(guest.namespace, (HOST, there.port))
            traffic.tcp(host, ("127.0.0.1", FORWARDED))
            traffic.refused(guest.namespace)
            if udp:
                traffic.udp(guest.namespace, (HOST, echo_port))
            time.sleep(duration)
            traffic.stop()
            assert not traffic.errors, Counter(traffic.errors).most_common(5)
            wait_for(lambda: there.connections + here.connections == 0, DRAIN_TIMEOUT, "the servers' connections")
            return _drained(service, udp), dict(traffic.ended)

        before, _ = run(max(2.0, seconds / 10))
        after, ended = run(seconds)
        found = Soak(ended, before, after)
        assert after.open_files <= before.open_files, found
        assert found.growth <= MAX_GROWTH, found
        return found


def _drained(service: Service, udp: bool) -> Worker:
    """The worker, once its flows are gone."""

    def vm() -> dict[str, Any]:
        return service.vm(MAC)

    wait_for(lambda: vm()["open_flows"] == 0, UDP_DRAIN_TIMEOUT if udp else DRAIN_TIMEOUT, "the flows to end")
    found = vm()
    return Worker(found["open_flows"], found["open_files"], pss(found["worker_pid"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where something is left behind."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    try:
        found = soak(parser.parse_args(arguments).minutes * 60)
    except AssertionError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    for fate, count in sorted(found.ended.items()):
        print(f"{count:8d} {fate}")
    print(f"left: {found.after.flows} flows, {found.after.open_files - found.before.open_files} descriptors,")
    print(f"      {found.growth} bytes of PSS over the warmed-up worker's {found.before.pss}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
