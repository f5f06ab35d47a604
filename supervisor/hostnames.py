"""What the guests of a network call themselves (DHCP option 12), as names of its DNS.

A name is the first label of what the guest says, in lower case, with nothing in it that is not of a host name (RFC 952,
1123 2.1). Of several guests with one name the first has it, for as long as its lease runs, so that nobody takes over
another's by asking for it. The gateway's and the host's names are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proto.messages import Lease
from supervisor.leases import LeasePool

MAX_NAMES = 4000
"""Of a network; they travel in one message."""
_LABEL = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class HostNames:
    """The names of one pool's guests. Times are Unix times, given by the caller."""

    def __init__(self, pool: LeasePool, fixed: Mapping[str, str]) -> None:
        self._pool = pool
        self._fixed = dict(fixed)
        self._holders: dict[str, str] = {}
        """Name -> MAC."""
        self._names: dict[str, str] = {}
        """MAC -> name."""
        self._table = self._fixed
        self._valid_until = 0.0

    def claim(self, lease: Lease, now: float) -> None:
        """A guest was given a lease and said what it is called."""
        self._valid_until = 0.0
        name = label_of(lease.hostname)
        if self._names.get(lease.mac) == name:
            return
        self._give_up(lease.mac)
        self.table(now)  # forgets whose lease is over
        if name and name not in self._fixed and name not in self._holders and len(self._holders) < MAX_NAMES:
            self._holders[name] = lease.mac
            self._names[lease.mac] = name
            self._valid_until = 0.0

    def changed(self) -> None:
        """A lease ended."""
        self._valid_until = 0.0

    def table(self, now: float) -> dict[str, str]:
        """Name -> address; the same object for as long as nothing changes."""
        if now < self._valid_until:
            return self._table
        leases = {name: self._pool.of_mac(mac, now) for name, mac in self._holders.items()}
        for name in [name for name, lease in leases.items() if lease is None]:
            self._give_up(self._holders[name])
        running = {name: lease for name, lease in leases.items() if lease is not None}
        self._valid_until = min((lease.expires_at for lease in running.values()), default=float("inf"))
        table = self._fixed | {name: lease.ip for name, lease in running.items()}
        if table != self._table:
            self._table = table
        return self._table

    def _give_up(self, mac: str) -> None:
        name = self._names.pop(mac, None)
        if name is not None:
            del self._holders[name]


def label_of(hostname: str) -> str:
    """The label a guest is known by; empty where what it says is no host name."""
    label = hostname.partition(".")[0].lower()
    return label if _LABEL.fullmatch(label) else ""
