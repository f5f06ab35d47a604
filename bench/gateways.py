"""The gateways that are measured side by side, each with a namespace guest behind it.

All run in a namespace that plays the host. Moorage and passt speak QEMU's framing and get the same bridge to the
guest's tap device (``tapbridge.c``); slirp4netns opens the tap itself, so its CPU time holds the bridge's work too.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

from bench.processes import tree
from tests.guests.guest import DHCP_SCRIPT
from tests.guests.namespace import Namespace
from tests.guests.service import Service
from tests.guests.waiting import wait_for

NOBODY = 65534
INTERFACE = "tap0"
SOURCE = Path(__file__).with_name("tapbridge.c")


def build_bridge(directory: Path) -> Path:
    """Compile ``tapbridge.c`` into `directory`."""
    program = directory / "tapbridge"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, SOURCE], check=True)
    return program


class Gateway(abc.ABC):
    """One gateway with a configured guest; a context manager."""

    name: str
    host_address: str
    """What the guest calls the host's 127.0.0.1."""

    def __init__(self, host: Namespace, directory: Path, bridge: Path, mtu: int, queue: int) -> None:
        """`queue`: packets that wait in the guest's tap device before it drops some."""
        self.host = host
        self.mtu = mtu
        self.queue = queue
        self._directory = directory
        self._bridge = bridge
        self._running = contextlib.ExitStack()
        self.guest: Namespace

    @abc.abstractmethod
    def start(self) -> None:
        """Start the gateway and attach `self.guest`."""

    @abc.abstractmethod
    def pids(self) -> list[int]:
        """Every process of the gateway."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as running:
            self.guest = running.enter_context(Namespace("bench"))
            self._running = running
            self.start()
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _start(self, *argv: str) -> subprocess.Popen[bytes]:
        """A process of the host that ends with this gateway; its output is kept in a file."""
        with (self._directory / f"{self.name}.log").open("wb") as log:
            process = self.host.start(*argv, output=log)
        self._running.callback(_end, process)
        return process

    def _attach(self, socket: Path) -> None:
        """Join the guest to a socket of QEMU's framing, and configure it by DHCP."""
        wait_for(socket.exists, 10, f"{self.name}'s socket")
        self._start(str(self._bridge), self.guest.name, INTERFACE, str(socket))
        wait_for(lambda: self.guest.run("ip", "link", "set", INTERFACE, "up").returncode == 0, 5, "the tap device")
        lease = self._directory / "lease"
        got = self.guest.run(
            *("env", f"LEASE_FILE={lease}", "busybox", "udhcpc", "-i", INTERFACE, "-f", "-n", "-q", "-t", "5"),
            *("-T", "1", "-O", "mtu", "-s", str(DHCP_SCRIPT)),
        )
        assert got.returncode == 0, got.stderr
        self._set_device()

    def _set_device(self) -> None:
        self.guest.ip("link", "set", INTERFACE, "mtu", str(self.mtu), "txqueuelen", str(self.queue))


class Moorage(Gateway):
    """The whole service."""

    name = "moorage"
    host_address = "192.168.127.254"

    def start(self) -> None:
        self._service = self._running.enter_context(Service(self.host, "--mtu", str(self.mtu)))
        self._attach(self._service.link_path)

    def pids(self) -> list[int]:
        return list(self._service.processes())


class Passt(Gateway):
    """passt, which refuses to run as root."""

    name = "passt"
    host_address = "192.168.127.1"

    def start(self) -> None:
        folder = self._directory / f"passt-{self.guest.name}"
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        self._running.callback(shutil.rmtree, folder)
        socket = folder / "s"
        self._process = self._start(
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "passt", "-f", "-s", str(socket)),
            *("-a", "192.168.127.2", "-n", "24", "-g", self.host_address, "-m", str(self.mtu), "--no-dhcpv6"),
        )
        self._attach(socket)

    def pids(self) -> list[int]:
        return tree(self._process.pid)


class Slirp4netns(Gateway):
    """libslirp behind a tap device."""

    name = "slirp4netns"
    host_address = "10.0.2.2"

    def start(self) -> None:
        self._process = self._start(
            *("slirp4netns", "--configure", f"--mtu={self.mtu}", "--netns-type=path"),
            *(f"/run/netns/{self.guest.name}", INTERFACE),
        )
        wait_for(lambda: "10.0.2.100" in self.guest.run("ip", "address").stdout, 10, "slirp4netns")
        self._set_device()

    def pids(self) -> list[int]:
        return tree(self._process.pid)


GATEWAYS: tuple[type[Gateway], ...] = (Moorage, Passt, Slirp4netns)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
