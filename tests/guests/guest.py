"""What every guest can do, whichever kind it is: run a shell command, configure itself by DHCP."""

from __future__ import annotations

import abc
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROBE_SOURCE = Path(__file__).with_name("probe.c")
DHCP_SCRIPT = Path(__file__).with_name("udhcpc.sh")
TIMED_OUT = 143
"""Status of a command that was killed when its time was up: 128 + SIGTERM, as busybox's timeout says it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in a guest left."""

    status: int
    output: str
    """Standard output and error together."""


@dataclass(frozen=True, slots=True)
class GuestLease:
    """What a DHCP server told the guest, as udhcpc's script saw it."""

    ip: str
    prefix_len: int
    routers: tuple[str, ...]
    dns: tuple[str, ...]
    mtu: int
    """0: not told."""
    search: tuple[str, ...]
    lease_time: int
    server: str

    @classmethod
    def parse(cls, text: str) -> GuestLease:
        """From the file that ``udhcpc.sh`` writes."""
        values = dict(line.split("=", 1) for line in text.splitlines())
        return cls(
            ip=values["ip"],
            prefix_len=int(values["mask"]),
            routers=tuple(values["router"].split()),
            dns=tuple(values["dns"].split()),
            mtu=int(values["mtu"] or 0),
            search=tuple(values["search"].split()),
            lease_time=int(values["lease"]),
            server=values["serverid"],
        )


class CommandFailed(AssertionError):
    """A command in a guest ended with another status than 0."""


class Guest(abc.ABC):
    """A machine with Linux's network stack and busybox."""

    interface: str
    mac: str
    probe: str
    """Path of the program built from ``probe.c``, inside the guest."""
    dhcp_script: str
    lease_file: str
    lease: GuestLease
    """Of the last `configure`."""

    @abc.abstractmethod
    def attempt(self, command: str, timeout: float = 30.0) -> Result:
        """Run a shell command and say how it ended; it is killed after `timeout` seconds."""

    def sh(self, command: str, timeout: float = 30.0) -> str:
        """Output of a shell command that must succeed. Raises CommandFailed."""
        result = self.attempt(command, timeout)
        if result.status != 0:
            raise CommandFailed(f"{command!r} ended with status {result.status}:\n{result.output}")
        return result.output

    @abc.abstractmethod
    def close(self) -> None:
        """Switch it off."""

    def configure(self, hostname: str = "") -> GuestLease:
        """Get a lease with udhcpc and use it."""
        told = f"-x hostname:{shlex.quote(hostname)}" if hostname else ""
        self.sh(
            f"LEASE_FILE={self.lease_file} busybox udhcpc -i {self.interface} -f -n -q -t 5 -T 1 {told}"
            f" -O search -O mtu -s {self.dhcp_script}"
        )
        self.lease = GuestLease.parse(self.sh(f"cat {self.lease_file}"))
        return self.lease


def build_probe(directory: Path) -> Path:
    """Compile ``probe.c`` into `directory`, statically."""
    program = directory / "probe"
    if not program.exists():
        subprocess.run(["gcc", "-O2", "-static", "-o", program, PROBE_SOURCE], check=True)
    return program


def random_sha256(probe: Path, size: int, seed: int) -> str:
    """SHA-256 of what ``probe random`` writes."""
    pipe = f"{shlex.quote(str(probe))} random {size} {seed} | sha256sum"
    return subprocess.run(pipe, shell=True, check=True, capture_output=True, text=True).stdout.split()[0]
