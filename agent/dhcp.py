"""What configures the device while its link is up: our own DHCP client, or a program that is one.

Both attend to themselves beside the traffic (`agent.bridge.Attendant`) and are told when the link comes up.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import subprocess
import time
from random import SystemRandom
from typing import Protocol

from agent.bridge import Attendant
from agent.configuration import Configuration
from agent.dhcp_client import DhcpClient
from agent.dhcp_message import Lease
from agent.dhcp_port import DhcpPort
from agent.tap import network_namespace

log = logging.getLogger("agent")

MAX_PAUSE = 60.0
"""s; poll does not count the time that the machine sleeps, the client's clock does."""
PROGRAMS = {
    "udhcpc": ("udhcpc", "-f", "-i"),
    "dhclient": ("dhclient", "-4", "-d", "-v", "--no-pid"),  # its file is that of another card's dhclient
}
"""Command lines that stay in the foreground; the device's name comes last."""
END_TIMEOUT = 2.0
"""s; how long a program may take to end on SIGTERM."""

_now = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class Configurer(Attendant, Protocol):
    """What the agent's main loop sees of it."""

    def link_up(self) -> None:
        """There is a link, maybe to another network than before."""

    def close(self) -> None:
        """Undo what was configured."""


class OwnDhcp:
    """The client on its port, and its leases put into effect."""

    def __init__(self, interface: str, mac: bytes, hostname: str, configuration: Configuration) -> None:
        """Must be made in the device's network namespace."""
        self._port = DhcpPort(interface)
        self._client = DhcpClient(mac, SystemRandom(), hostname)
        self._configuration = configuration
        self._applied: tuple[Lease, float] | None = None
        """The lease in effect, and when it ends."""

    def fileno(self) -> int:
        return self._port.fileno()

    def timeout(self) -> float:
        return min(max(0.0, self._client.poll_at() - _now()), MAX_PAUSE)

    def link_up(self) -> None:
        self._client.link_up(_now())
        self._settle()

    def attend(self) -> None:
        try:
            while (payload := self._port.receive()) is not None:
                self._client.receive(payload, _now())
        except OSError as error:
            log.warning("DHCP cannot read: %s", error)
        self._client.on_timer(_now())
        self._settle()

    def close(self) -> None:
        self._port.close()

    def _settle(self) -> None:
        """Put into effect what the client has now, and send what it has to say."""
        lease = self._client.lease
        current = None if lease is None else (lease, self._client.expires_at)
        if current != self._applied:
            self._applied = current
            if lease is None:
                self._configuration.clear()
            else:
                self._configuration.apply(lease)
        for message in self._client.take_output():
            try:
                self._port.send(message)
            except OSError as error:  # it will be sent again when its time is over
                log.warning("DHCP cannot send: %s", error)


class DhcpProgram:
    """udhcpc or dhclient, begun anew with each link, for the network behind it may be another."""

    def __init__(self, name: str, interface: str, netns: str | None) -> None:
        self._argv = [*PROGRAMS[name], interface]
        self._netns = netns
        self._process: subprocess.Popen[bytes] | None = None

    def fileno(self) -> int:
        return -1

    def timeout(self) -> float:
        return math.inf

    def attend(self) -> None:
        """Nothing: it goes its own way."""

    def link_up(self) -> None:
        self.close()
        try:
            with network_namespace(self._netns):
                self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=2)
        except OSError as error:
            log.warning("cannot start %s: %s", self._argv[0], error)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is not None:
            log.warning("%s had ended, with status %d", self._argv[0], process.returncode)
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
            return
        process.kill()
        process.wait()
