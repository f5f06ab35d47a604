"""Where an address means one machine: the VMs of a shared network together, each VM of an isolated one alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from proto.errors import RequestFailed
from proto.messages import Lease, LeaseRelease, LeaseRequest
from supervisor.hostnames import HostNames
from supervisor.leases import LeasePool

MAX_SEEN_PER_VM = 256
"""Addresses without a lease that a VM may hold."""
MAX_ADDRESSES = 16
"""Addresses that one VM may speak from to others."""
MAX_MAC_CHANGES = 5
MAC_CHANGES_IN = 30.0
"""s in which a VM may change its MAC so often; one that changes it with every frame cannot keep everybody busy."""


class Realm:
    """Who has which address, by lease or by use, and which MAC. Times are Unix times, given by the caller."""

    def __init__(
        self, leases: LeasePool, names: HostNames, gateway_mac: str, is_attached: Callable[[str], bool]
    ) -> None:
        self.leases = leases
        self.names = names
        self._gateway_mac = gateway_mac
        self._is_attached = is_attached
        self._seen: dict[str, str] = {}
        """Address without a lease -> VM seen to use it."""
        self._macs: dict[str, str] = {}
        """MAC -> VM that uses it; one for each VM."""
        self._mac_changes: dict[str, deque[float]] = {}
        """When each VM took a MAC, the last times."""

    def request_lease(self, asked: LeaseRequest, now: float) -> Lease:
        """Answer a guest. Raises RequestFailed as `LeasePool.request`, and ``conflict`` when another VM has the MAC."""
        if owner := self.other_owner(asked.vm_id, asked.mac):
            raise RequestFailed.because("conflict", f"MAC {asked.mac} belongs to {owner}")
        lease = self.leases.request(asked.vm_id, asked.mac, asked.requested_ip, asked.hostname, asked.commit, now)
        if asked.commit:
            self.names.claim(lease, now)
        return lease

    def release_lease(self, asked: LeaseRelease, now: float) -> Lease | None:
        """A guest gave its address back, or found it in use; the lease that ended."""
        ended = self.leases.release(asked.vm_id, asked.mac, asked.ip, asked.declined, now)
        self.names.changed()
        return ended

    def restore(self, leases: Iterable[Lease]) -> None:
        """Take over leases of an earlier run, the oldest first."""
        self.leases.restore(leases)
        for lease in self.leases:
            self.names.claim(lease, 0.0)

    def see(self, vm_id: str, mac: str, ip: str, now: float) -> bool:
        """A VM uses an address; False when the address is not its to use."""
        if not self.leases.adopt(vm_id, mac, ip, now):
            return False
        if self._is_attached(self._seen.get(ip, "")):
            return self._seen[ip] == vm_id
        if sum(holder == vm_id for holder in self._seen.values()) >= MAX_SEEN_PER_VM:
            return False
        self._seen[ip] = vm_id
        return True

    def claim_mac(self, vm_id: str, mac: str, now: float) -> bool:
        """A VM uses a MAC; False when it may not: another VM has it, or it changes its own too often.

        A VM has one MAC at a time, and gives up the one before.
        """
        if self.other_owner(vm_id, mac):
            return False
        held = self._mac_of(vm_id)
        if held == mac:
            return True
        changes = self._mac_changes.setdefault(vm_id, deque(maxlen=MAX_MAC_CHANGES))
        if len(changes) == MAX_MAC_CHANGES and now - changes[0] < MAC_CHANGES_IN:
            return False
        changes.append(now)
        self._macs.pop(held, None)
        self._macs[mac] = vm_id
        return True

    def other_owner(self, vm_id: str, mac: str) -> str:
        """Who has a MAC, if not this VM; empty: nobody."""
        if mac == self._gateway_mac:
            return "the gateway"
        user = self._macs.get(mac, vm_id)
        return user if user != vm_id and self._is_attached(user) else ""

    def identity(self, vm_id: str, now: float) -> tuple[str, tuple[str, ...]]:
        """The MAC that a VM has, empty where it has none yet, and the addresses it may speak from to others.

        That is its lease; a VM that asked for none may use the addresses it was seen to use.
        """
        mac = self._mac_of(vm_id)
        lease = self.leases.of_mac(mac, now)
        if lease is not None and lease.vm_id == vm_id:
            return mac, (lease.ip,)
        return mac, tuple(ip for ip, holder in self._seen.items() if holder == vm_id)[:MAX_ADDRESSES]

    def macs(self, now: float) -> dict[str, str]:
        """Every MAC that is known, by use or by lease, and the id of its VM."""
        leased = {lease.mac: lease.vm_id for lease in self.leases if lease.expires_at > now}
        return {mac: vm_id for mac, vm_id in (leased | self._macs).items() if self._is_attached(vm_id)}

    def holder(self, ip: str, now: float) -> str:
        """The id of the VM that has an address, by lease before by use; empty: none."""
        lease = self.leases.owner(ip, now)
        if lease is not None and self._is_attached(lease.vm_id):
            return lease.vm_id
        return self._seen.get(ip, "")

    def forget(self, vm_id: str) -> None:
        """A VM is gone. Its leases run on: it may come back."""
        self._seen = {ip: holder for ip, holder in self._seen.items() if holder != vm_id}
        self._macs.pop(self._mac_of(vm_id), None)
        self._mac_changes.pop(vm_id, None)

    def _mac_of(self, vm_id: str) -> str:
        return next((mac for mac, user in self._macs.items() if user == vm_id), "")
