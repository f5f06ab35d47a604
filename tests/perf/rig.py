"""One guest on one service, and the counting of what moving bytes between them costs."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.guests.namespace import NamespaceGuest
from tests.guests.service import Service

HOST = "192.168.127.254"
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """By how much the engine's counters grew."""

    counters: dict[str, int]

    @property
    def syscalls(self) -> int:
        """Those that the engine counts."""
        return sum(count for name, count in self.counters.items() if name.startswith("syscalls."))

    @property
    def waits(self) -> int:
        """How often the worker asked what is ready."""
        return self.counters["syscalls.wait"]

    @property
    def upcalls(self) -> int:
        """How often Python had to think."""
        return self.counters["upcalls.queued"]


class Rig:
    """A configured namespace guest; the test's own threads are the programs on both sides."""

    def __init__(self, service: Service, guest: NamespaceGuest, mtu: int) -> None:
        self.service, self.guest, self.mtu = service, guest, mtu
        self.worker: int = service.vm(guest.mac)["worker_pid"]
        self._know_the_neighbour()

    def _know_the_neighbour(self) -> None:
        """Spare the counts the ARP questions that Linux asks now and then."""
        self.guest.sh(f"busybox ping -c 1 -W 2 {HOST}")
        mac = re.search(r"lladdr (\S+)", self.guest.sh(f"ip neigh show {HOST}"))
        assert mac is not None
        known = ("lladdr", mac[1], "dev", self.guest.interface, "nud", "permanent")
        self.guest.namespace.ip("neigh", "replace", HOST, *known)

    def cost(self, action: Callable[[], None], times: int = 1) -> Cost:
        """Of running `action` so often."""
        before = self.service.counters()
        for _ in range(times):
            action()
        after = self.service.counters()
        return Cost({name: count - before.get(name, 0) for name, count in after.items()})

    def traced(self, action: Callable[[], None], report: Path, times: int = 1) -> tuple[int, Cost]:
        """How many system calls the worker makes meanwhile by strace, and what the engine says of it."""
        cost = self.cost(lambda: self._trace(action, report, times))
        total = re.search(r"^100\.00 +\S+ +\S+ +(\d+) .*total$", report.read_text(), re.MULTILINE)
        assert total is not None, report.read_text()
        return int(total[1]), cost

    def _trace(self, action: Callable[[], None], report: Path, times: int) -> None:
        argv = ["strace", "-f", "-c", "-o", str(report), "-p", str(self.worker)]
        tracer = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        attached = tracer.stderr.readline()
        try:
            assert "attached" in attached, attached
            for _ in range(times):
                action()
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=10)

    @contextlib.contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """A server on the host's loopback."""
        with self.service.host.entered():
            server = socket.create_server(("127.0.0.1", 0))
        with server:
            yield server

    def connect(self, server: socket.socket) -> tuple[socket.socket, socket.socket]:
        """The guest connects to `server`: its end, and the host's."""
        with self.guest.namespace.entered():
            in_guest = socket.socket()
        in_guest.settimeout(10)
        in_guest.connect((HOST, server.getsockname()[1]))
        on_host, _ = server.accept()
        for end in (in_guest, on_host):
            end.settimeout(10)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return in_guest, on_host

    def transfer(self, size: int, to_guest: bool) -> None:
        """Move `size` bytes over a connection of their own."""
        with self.listening() as server:
            ends = self.connect(server)
            with ends[0], ends[1]:
                source, sink = ends[::-1] if to_guest else ends
                sender = threading.Thread(target=_send, args=(source, size))
                sender.start()
                buffer, left = bytearray(CHUNK), size
                while left:
                    left -= sink.recv_into(buffer)
                sender.join()

    def exchange(self, server: socket.socket) -> None:
        """A connection that carries 1 byte each way, then ends."""
        in_guest, on_host = self.connect(server)
        with in_guest, on_host:
            ping_pong(in_guest, on_host)
            in_guest.close()
            assert on_host.recv(1) == b""


def ping_pong(in_guest: socket.socket, on_host: socket.socket) -> None:
    """1 byte there, 1 byte back."""
    in_guest.sendall(b"?")
    assert on_host.recv(1) == b"?"
    on_host.sendall(b"!")
    assert in_guest.recv(1) == b"!"


def _send(source: socket.socket, size: int) -> None:
    chunk = bytes(CHUNK)
    for start in range(0, size, CHUNK):
        source.sendall(chunk[: size - start])
