"""Network namespaces: one that plays the host, and the guest whose TCP stack is this machine's Linux."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Self

from agent.tap import network_namespace
from tests.guests.guest import DHCP_SCRIPT, TIMED_OUT, Guest, Result
from tests.guests.waiting import wait_for

CONFIGURATION = Path("/etc/netns")
"""``ip netns exec`` lays the files of ``/etc/netns/NAME`` over those of ``/etc``."""


Stdio = tuple[int, int]
"""Descriptors for a program's standard input and output."""


class Namespace:
    """A network namespace with a name of its own, loopback up, and its own ``/etc/resolv.conf``."""

    def __init__(self, label: str, of_pid: int | None = None) -> None:
        """`of_pid`: not a new one, but that of this process."""
        self.name = f"moorage-{label}-{uuid.uuid4().hex[:8]}"
        self.resolv_conf = CONFIGURATION / self.name / "resolv.conf"
        self.resolv_conf.parent.mkdir(parents=True)
        self.resolv_conf.touch()
        _ip("netns", *(("add", self.name) if of_pid is None else ("attach", self.name, str(of_pid))))
        self.ip("link", "set", "lo", "up")
        self._started: list[subprocess.Popen[bytes]] = []

    def ip(self, *arguments: str) -> None:
        """``ip`` on this namespace."""
        _ip("-n", self.name, *arguments)

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` so that it runs in here; the process that is started becomes it (same pid)."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever its status; output and error are captured."""
        return subprocess.run(self.command(argv), capture_output=True, text=True, timeout=timeout, check=False)

    def start(
        self,
        *argv: str,
        output: IO[bytes] | int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        stdio: Stdio | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program and leave it running; it is killed with the namespace at the latest.

        `output` gets what it prints; with `stdio` only what it prints as errors.
        """
        stdin, stdout = stdio or (subprocess.DEVNULL, output)
        process = subprocess.Popen(self.command(argv), stdin=stdin, stdout=stdout, stderr=output, env=env)
        self._started.append(process)
        return process

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets that this thread opens in the block belong to the namespace."""
        with network_namespace(self.name):
            yield

    def pids(self) -> list[int]:
        """The processes inside."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split()]

    def close(self) -> None:
        """End what runs inside, and the namespace."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.kill()
            process.wait()
        _ip("netns", "delete", self.name)
        shutil.rmtree(self.resolv_conf.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LinuxGuest(Guest):
    """A guest made of a network namespace; how it is joined to Moorage is left to others."""

    interface = "tap0"

    def __init__(self, directory: Path, mac: str, probe: Path) -> None:
        self.mac = mac
        self._closed = False
        self.probe = str(probe)
        self.dhcp_script = str(DHCP_SCRIPT)
        self.namespace = Namespace("guest")
        self.lease_file = str(directory / f"{self.namespace.name}.lease")

    def attempt(self, command: str, timeout: float = 30.0) -> Result:
        shell = subprocess.Popen(
            self.namespace.command(["busybox", "sh", "-c", command]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = shell.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            output, _ = shell.communicate()
            return Result(TIMED_OUT, output)
        return Result(shell.returncode, output)

    def close(self) -> None:
        """End whatever runs in the guest. May be called again."""
        if not self._closed:
            self._closed = True
            self.namespace.close()


class TapGuest(LinuxGuest):
    """A guest whose device the service opens itself, with a MAC of the kernel's choice."""

    def __init__(self, directory: Path, probe: Path) -> None:
        super().__init__(directory, "", probe)

    @property
    def url(self) -> str:
        """Of the listener that makes the device."""
        return f"tap:///{self.interface}?netns=/run/netns/{self.namespace.name}"

    def learn_mac(self) -> None:
        """The device is there: the kernel has chosen its MAC."""
        self.mac = self.sh(f"cat /sys/class/net/{self.interface}/address").strip()


class NamespaceGuest(LinuxGuest):
    """A guest made of a network namespace, a tap device, and the agent that joins it to a Moorage socket."""

    def __init__(
        self,
        directory: Path,
        url: str,
        mac: str,
        probe: Path,
        host: Namespace | None = None,
        stdio: Stdio | None = None,
        framing: str = "",
    ) -> None:
        """`url`: where to connect; the agent does it from the namespace `host`, where one is given.

        `stdio`: the agent's standard input and output, for the url ``stdio:``. `framing`: another than the
        agent's own choice.
        """
        super().__init__(directory, mac, probe)
        self.log = directory / f"{self.namespace.name}.log"
        argv = [sys.executable, "-m", "agent", "--connect", url, "--netns", self.namespace.name, "--mac", mac]
        argv += ["--framing", framing] if framing else []
        argv += ["--dhcp", "none"]  # `configure` does it, with udhcpc: a client that is not ours
        with self.log.open("wb") as log:
            stdin, stdout = stdio or (None, log)
            self.agent = subprocess.Popen(host.command(argv) if host else argv, stdin=stdin, stdout=stdout, stderr=log)
        try:
            wait_for(self._is_connected, 10.0, "the agent's connection")
        except BaseException:
            self.close()
            raise

    def _is_connected(self) -> bool:
        text = self.log.read_text()
        assert self.agent.poll() is None, text
        return "connected to" in text

    def close(self) -> None:
        """End the agent (and with it the device) and whatever runs in the guest. May be called again."""
        if self._closed:
            return
        self.agent.terminate()
        try:
            self.agent.wait(5)
        except subprocess.TimeoutExpired:
            self.agent.kill()
            self.agent.wait()
        super().close()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
