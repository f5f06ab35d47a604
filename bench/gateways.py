"""The gateways that are measured side by side, each with a namespace guest behind it.

All run in a namespace that plays the host. Those that speak QEMU's framing get the same bridge to the guest's tap
device (``tapbridge.c``); slirp4netns, pasta and Moorage's `tap` open the device themselves, so their CPU time holds the
bridge's work too.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.processes import tree
from bench.programs import LIBSLIRP_HEADERS, Programs
from tests.guests.guest import DHCP_SCRIPT
from tests.guests.namespace import Namespace
from tests.guests.service import Service
from tests.guests.waiting import wait_for

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
INTERFACE = "tap0"
MAC = "5a:94:ef:e4:0c:ee"
NEIGHBOUR_MAC = "5a:94:ef:e4:0c:ef"
NEIGHBOUR_ADDRESS = "192.168.127.3"
FORWARDED = 7100
"""The first of the host's ports that lead into the guest."""
GUEST_PORT = 7200
"""The guest's port behind it; the others follow in the same order."""
PORTS = 4
"""Ports of each server; so many as ``load.c`` says."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a gateway is started with."""

    programs: Programs
    directory: Path
    mtu: int
    queue: int
    """Packets that wait in the guest's tap device before it drops some."""
    forwards: bool = False
    """Whether `PORTS` ports of the host lead into the guest."""
    neighbour: bool = False
    """Whether there is a second guest on the first one's network."""

    def pairs(self) -> list[tuple[int, int]]:
        """(host's port, guest's port) of every forward."""
        return [(FORWARDED + i, GUEST_PORT + i) for i in range(PORTS)] if self.forwards else []


class Gateway(abc.ABC):
    """One gateway with a configured guest; a context manager."""

    name: str
    host_address: str
    """What the guest calls the host's 127.0.0.1."""
    carries = frozenset({"tcp", "udp", "forward"})

    def __init__(self, host: Namespace, link: Link) -> None:
        self.host = host
        self.link = link
        self._running = contextlib.ExitStack()
        self.guest: Namespace
        self.neighbour: Namespace
        """Where the link says that there is one; it has NEIGHBOUR_ADDRESS."""
        self.bridge_pid = 0
        """Of what joins the guest's device to the link; 0: the gateway has the device itself."""

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it can be measured here."""
        return shutil.which(cls.name) is not None

    @abc.abstractmethod
    def start(self) -> None:
        """Start the gateway and attach `self.guest`."""

    @abc.abstractmethod
    def pids(self) -> list[int]:
        """Every process of the gateway."""

    def worker_pids(self) -> list[int]:
        """Those of `pids` that carry traffic, where that is not all of them."""
        return []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as running:
            self._running = running
            self.guest = running.enter_context(self._make_guest())
            self.start()
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _make_guest(self) -> Namespace:
        return Namespace("bench")

    def _start(self, *argv: str) -> subprocess.Popen[bytes]:
        """A process of the host that ends with this gateway; its output is kept in a file."""
        with (self.link.directory / f"{self.name}.log").open("wb") as log:
            process = self.host.start(*argv, output=log)
        self._running.callback(_end, process)
        return process

    def _folder(self) -> Path:
        """An empty folder that nobody may write to, and that is gone with this gateway."""
        folder = self.link.directory / self.guest.name
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        self._running.callback(shutil.rmtree, folder)
        return folder

    def _bridge(self, path: Path) -> None:
        """Join the guest's device to a socket of QEMU's framing."""
        self.bridge_pid = self._join(path, self.guest, MAC)

    def _join(self, path: Path, guest: Namespace, mac: str) -> int:
        """Give a guest a device that is joined to a socket of QEMU's framing; the pid of what joins them."""
        wait_for(path.exists, 10, f"{self.name}'s socket")
        bridge = self._start(self.link.programs.path("tapbridge"), guest.name, INTERFACE, str(path))
        up = ("ip", "link", "set", INTERFACE, "address", mac, "up")
        wait_for(lambda: guest.run(*up).returncode == 0, 5, "the tap device")
        return bridge.pid

    def _attach(self, path: Path) -> None:
        """Bridge, and configure the guest by DHCP."""
        self._bridge(path)
        self._configure(self.guest)

    def _configure(self, guest: Namespace) -> None:
        lease = self.link.directory / "lease"
        got = guest.run(
            *("env", f"LEASE_FILE={lease}", "busybox", "udhcpc", "-i", INTERFACE, "-f", "-n", "-q", "-t", "5"),
            *("-T", "1", "-O", "mtu", "-s", str(DHCP_SCRIPT)),
        )
        assert got.returncode == 0, got.stderr
        self._set_device(guest)

    def _set_device(self, guest: Namespace) -> None:
        guest.ip("link", "set", INTERFACE, "mtu", str(self.link.mtu), "txqueuelen", str(self.link.queue))


class Moorage(Gateway):
    """The whole service."""

    name = "moorage"
    host_address = "192.168.127.254"
    carries = Gateway.carries | {"tap", "neighbour"}

    @classmethod
    def is_installed(cls) -> bool:
        return True

    def start(self) -> None:
        self._service = self._running.enter_context(Service(self.host, "--mtu", str(self.link.mtu)))
        self._attach(self._service.link_path)
        for host_port, guest_port in self.link.pairs():
            self._service.expose(f"127.0.0.1:{host_port}", f"192.168.127.2:{guest_port}")

        if self.link.neighbour:
            self.neighbour = self._running.enter_context(Namespace("neighbour"))
            self._join(self._service.link_path, self.neighbour, NEIGHBOUR_MAC)
            self._configure(self.neighbour)

    def pids(self) -> list[int]:
        return list(self._service.processes())

    def worker_pids(self) -> list[int]:
        return [vm["worker_pid"] for vm in self._service.get("/v1/vms")["vms"]]

    def counters(self) -> dict[str, int]:
        """What the worker counted until now, by dotted name."""
        return self._service.counters()


class MoorageTap(Gateway):
    """The whole service, on the guest's tap device itself."""

    name = "moorage-tap"
    host_address = "192.168.127.254"
    carries = frozenset({"tap", "neighbour"})

    @classmethod
    def is_installed(cls) -> bool:
        return True

    def start(self) -> None:
        guests = [self.guest]
        if self.link.neighbour:
            self.neighbour = self._running.enter_context(Namespace("neighbour"))
            guests.append(self.neighbour)
        listeners = [f"--listen=tap=tap:///{INTERFACE}?netns=/run/netns/{guest.name}" for guest in guests]
        self._service = self._running.enter_context(Service(self.host, "--mtu", str(self.link.mtu), *listeners))
        for guest in guests:
            self._configure(guest)

    def pids(self) -> list[int]:
        return list(self._service.processes())

    def worker_pids(self) -> list[int]:
        return [vm["worker_pid"] for vm in self._service.get("/v1/vms")["vms"]]


class Passt(Gateway):
    """passt, which refuses to run as root."""

    name = "passt"
    host_address = "192.168.127.1"

    def start(self) -> None:
        path = self._folder() / "s"
        forwards = ",".join(f"{host_port}:{guest_port}" for host_port, guest_port in self.link.pairs())
        self._process = self._start(
            *(*AS_NOBODY, "passt", "-f", "-s", str(path)),
            *("-a", "192.168.127.2", "-n", "24", "-g", self.host_address, "-m", str(self.link.mtu), "--no-dhcpv6"),
            *(["-t", f"127.0.0.1/{forwards}"] if forwards else []),
        )
        self._attach(path)

    def pids(self) -> list[int]:
        return tree(self._process.pid)


class Pasta(Gateway):
    """passt on a tap device. It serves only a namespace of its own user's, so this one is nobody's."""

    name = "pasta"
    host_address = "192.168.127.1"
    carries = frozenset({"tap"})

    def _make_guest(self) -> Namespace:
        self._container = subprocess.Popen([*AS_NOBODY, "unshare", "-Urn", "cat"], stdin=subprocess.PIPE)
        self._running.callback(_end, self._container)
        ours = os.stat("/proc/self/ns/net")
        wait_for(lambda: not os.path.samestat(os.stat(f"/proc/{self._container.pid}/ns/net"), ours), 5, "unshare")
        return Namespace("bench", self._container.pid)

    def start(self) -> None:
        # nobody may open /dev/net/tun on most systems; where not, this one may open a node of its own
        device = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200"
        pasta = (
            *(*AS_NOBODY, "pasta", "-f", "--config-net", "-I", INTERFACE, "-a", "192.168.127.2", "-n", "24"),
            *("-g", self.host_address, "-m", str(self.link.mtu), "-t", "none", "-u", "none", "-T", "none"),
            *("-U", "none", str(self._container.pid)),
        )
        self._process = self._start("unshare", "--mount", "sh", "-c", f"{device} && exec {shlex.join(pasta)}")
        wait_for(lambda: "192.168.127.2" in self.guest.run("ip", "address").stdout, 10, "pasta")
        self._set_device(self.guest)

    def pids(self) -> list[int]:
        return tree(self._process.pid)


class Libslirp(Gateway):
    """libslirp as QEMU's user network drives it, on the link of the others."""

    name = "libslirp"
    host_address = "192.168.127.1"

    @classmethod
    def is_installed(cls) -> bool:
        return LIBSLIRP_HEADERS.exists()

    def start(self) -> None:
        path = self._folder() / "s"
        program = self.link.programs.path("slirpstream")
        forwards = [f"{host_port}:{guest_port}" for host_port, guest_port in self.link.pairs()]
        self._process = self._start(program, str(path), str(self.link.mtu), *forwards)
        self._attach(path)

    def pids(self) -> list[int]:
        return [self._process.pid]


class Slirp4netns(Gateway):
    """libslirp behind a tap device."""

    name = "slirp4netns"
    host_address = "10.0.2.2"
    carries = Gateway.carries | {"tap", "neighbour"}

    def start(self) -> None:
        api = self._folder() / "api"
        self._process = self._start(
            *("slirp4netns", "--configure", f"--mtu={self.link.mtu}", "--netns-type=path", f"--api-socket={api}"),
            *(f"/run/netns/{self.guest.name}", INTERFACE),
        )
        wait_for(lambda: "10.0.2.100" in self.guest.run("ip", "address").stdout, 10, "slirp4netns")
        self._set_device(self.guest)
        for host_port, guest_port in self.link.pairs():
            arguments = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": host_port, "guest_port": guest_port}
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(api))
                connection.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
                answer = connection.recv(4096).decode()
            assert "error" not in answer, answer

    def pids(self) -> list[int]:
        return tree(self._process.pid)


class Gvproxy(Gateway):
    """gvisor-tap-vsock."""

    name = "gvproxy"
    host_address = "192.168.127.254"

    def start(self) -> None:
        folder = self._folder()
        path, api = folder / "s", folder / "api"
        self._process = self._start(
            *("gvproxy", "-listen-qemu", f"unix://{path}", "-listen", f"unix://{api}", "-mtu", str(self.link.mtu)),
        )
        self._attach(path)
        for host_port, guest_port in self.link.pairs():
            body = json.dumps({"local": f"127.0.0.1:{host_port}", "remote": f"192.168.127.2:{guest_port}"})
            url = "http://gvproxy/services/forwarder/expose"
            exposed = self.host.run("curl", "-sf", "--unix-socket", str(api), "-d", body, url)
            assert exposed.returncode == 0, exposed.stderr

    def pids(self) -> list[int]:
        return tree(self._process.pid)


class Ceiling(Gateway):
    """The least that one thread can do for TCP on this link (``ceiling.c``): how far away the limit is."""

    name = "ceiling"
    host_address = "192.168.127.254"
    carries = frozenset({"tcp"})

    @classmethod
    def is_installed(cls) -> bool:
        return True

    def start(self) -> None:
        path = self._folder() / "s"
        self._process = self._start(self.link.programs.path("ceiling"), str(path), str(self.link.mtu))
        self._bridge(path)
        self.guest.ip("address", "add", "192.168.127.2/24", "dev", INTERFACE)
        self.guest.ip("route", "add", "default", "via", "192.168.127.1")
        self._set_device(self.guest)

    def pids(self) -> list[int]:
        return [self._process.pid]


GATEWAYS: tuple[type[Gateway], ...] = (Moorage, MoorageTap, Passt, Pasta, Libslirp, Slirp4netns, Gvproxy, Ceiling)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
