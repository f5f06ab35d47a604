"""Which guest has which address: the pool of one network.

RFC 2131 4.3.1, 4.3.2: a MAC gets the address it had, else the one it asks for, else the lowest that was never used,
else the one whose lease ended longest ago. The network, gateway, host and broadcast addresses are never given out, and
an address with a static lease only to its MAC.
A VM cannot take the lease of a MAC that belongs to another VM that is attached: the first one keeps it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from proto.errors import RequestFailed
from proto.messages import Lease

OFFER_TIME = 60.0
"""s; how long an offered address waits for the guest's REQUEST."""
DECLINE_TIME = 600.0
"""s; how long an address that a guest found in use is left alone."""
MAC = re.compile("([0-9a-f]{2}:){5}[0-9a-f]{2}")
MAX_HOSTNAME = 255
MAX_LEASES_PER_VM = 64
"""A VM may hold bridges and containers of its own, but not the whole pool."""

log = logging.getLogger(__name__)


class LeasePool:
    """The leases of one network. Times are Unix times, given by the caller."""

    def __init__(
        self,
        network: str,
        subnet: IPv4Network,
        reserved: Iterable[IPv4Address],
        lease_time: float,
        is_attached: Callable[[str], bool],
        static: Mapping[str, str],
    ) -> None:
        """`static`: address -> MAC."""
        self._network = network
        self._subnet = subnet
        self._reserved = {subnet.network_address, subnet.broadcast_address, *reserved}
        self._lease_time = lease_time
        self._is_attached = is_attached
        self._static_macs = dict(static)
        self._static_ips = {mac: ip for ip, mac in static.items()}
        self._by_mac: dict[str, Lease] = {}
        self._by_ip: dict[str, Lease] = {}
        self._declined: dict[str, float] = {}
        self._offered: set[str] = set()
        """MACs that were offered an address and have not taken it."""

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_mac.values())

    def restore(self, leases: Iterable[Lease]) -> None:
        """Take over leases of an earlier run; those that no longer fit the network are dropped."""
        for lease in leases:
            if self._is_usable(lease.ip, lease.mac) and lease.ip not in self._by_ip:
                self._put(lease)

    def owner(self, ip: str, now: float) -> Lease | None:
        """The running lease of an address."""
        lease = self._by_ip.get(ip)
        return lease if lease is not None and lease.expires_at > now else None

    def of_mac(self, mac: str, now: float) -> Lease | None:
        """The running lease of a MAC."""
        lease = self._by_mac.get(mac)
        return lease if lease is not None and lease.expires_at > now else None

    def request(self, vm_id: str, mac: str, requested_ip: str, hostname: str, commit: bool, now: float) -> Lease:
        """A lease (`commit`) or an offer. Raises RequestFailed: ``bad-request``, ``conflict``, ``unavailable``."""
        if not MAC.fullmatch(mac):
            raise RequestFailed.because("bad-request", f"{mac[:40]!r} is not a MAC")
        self._forget_stale_offers(now)
        current = self._by_mac.get(mac)
        if current is not None and self._belongs_to_another(current, vm_id, now):
            log.warning("%s uses MAC %s, which belongs to %s: it gets no address", vm_id, mac, current.vm_id)
            raise RequestFailed.because("conflict", f"MAC {mac} belongs to {current.vm_id}")
        if sum(lease.vm_id == vm_id and lease.mac != mac for lease in self) >= MAX_LEASES_PER_VM:
            raise RequestFailed.because("unavailable", f"{vm_id} already has {MAX_LEASES_PER_VM} leases")
        was_offered = mac in self._offered
        ip = self._choose(mac, current, requested_ip, commit, now)
        expires_at = now + (self._lease_time if commit else OFFER_TIME)
        if current is not None and not commit:  # a DISCOVER does not shorten the lease that runs
            expires_at = max(expires_at, current.expires_at)
        lease = Lease(self._network, ip, mac, expires_at, hostname[:MAX_HOSTNAME], vm_id, mac in self._static_ips)
        self._put(lease)
        if not commit and (current is None or was_offered):
            self._offered.add(mac)
        return lease

    def adopt(self, vm_id: str, mac: str, ip: str, now: float) -> bool:
        """A VM was seen to use an address. True when it may: nobody else has it, or the lease is its MAC's own."""
        lease = self.owner(ip, now)
        if lease is None:
            return self._is_usable(ip, mac)
        if lease.mac != mac or self._belongs_to_another(lease, vm_id, now):
            return False
        self._put(dataclasses.replace(lease, vm_id=vm_id))
        return True

    def release(self, vm_id: str, mac: str, ip: str, declined: bool, now: float) -> Lease | None:
        """End the lease now. It stays known, so that the MAC gets the address back; after a decline it does not."""
        lease = self._by_mac.get(mac)
        if lease is None or lease.ip != ip or self._belongs_to_another(lease, vm_id, now):
            return None
        if declined:
            self._drop(lease)
            self._declined[ip] = now + DECLINE_TIME
            return lease
        ended = dataclasses.replace(lease, expires_at=min(lease.expires_at, now))
        self._put(ended)
        return ended

    def _forget_stale_offers(self, now: float) -> None:
        for mac in [mac for mac in self._offered if self._by_mac[mac].expires_at <= now]:
            self._drop(self._by_mac[mac])

    def _belongs_to_another(self, lease: Lease, vm_id: str, now: float) -> bool:
        return lease.vm_id != vm_id and lease.expires_at > now and self._is_attached(lease.vm_id)

    def _choose(self, mac: str, current: Lease | None, requested_ip: str, commit: bool, now: float) -> str:
        own = self._static_ips.get(mac, "" if current is None else current.ip)
        if own:
            if commit and requested_ip not in ("", own):
                raise RequestFailed.because("conflict", f"{mac} has {own}, not {requested_ip}")
            return own
        if requested_ip and self._is_free(requested_ip, now):
            return requested_ip
        if requested_ip and commit:
            raise RequestFailed.because("conflict", f"{requested_ip} is not to be had")
        ip = next((ip for ip in map(str, self._subnet.hosts()) if self._is_unused(ip, now)), None)
        if ip is None:
            ip = self._recycle(now)
        if ip is None:
            raise RequestFailed.because("unavailable", f"network {self._network} has no free address")
        return ip

    def _recycle(self, now: float) -> str | None:
        ended = [lease for lease in self if lease.expires_at <= now]
        return min(ended, key=lambda lease: lease.expires_at).ip if ended else None

    def _is_usable(self, ip: str, mac: str = "") -> bool:
        """Whether a MAC may have an address, by default one without a static lease."""
        try:
            address = IPv4Address(ip)
        except AddressValueError:
            return False
        if self._static_macs.get(ip, mac) != mac or self._static_ips.get(mac, ip) != ip:
            return False
        return address in self._subnet and address not in self._reserved

    def _is_unused(self, ip: str, now: float) -> bool:
        return ip not in self._by_ip and self._is_usable(ip) and self._declined.get(ip, 0.0) <= now

    def _is_free(self, ip: str, now: float) -> bool:
        lease = self._by_ip.get(ip)
        return self._is_unused(ip, now) or (lease is not None and lease.expires_at <= now)

    def _put(self, lease: Lease) -> None:
        for old in (self._by_mac.get(lease.mac), self._by_ip.get(lease.ip)):
            if old is not None:
                self._drop(old)
        self._by_mac[lease.mac] = lease
        self._by_ip[lease.ip] = lease

    def _drop(self, lease: Lease) -> None:
        self._by_mac.pop(lease.mac, None)
        self._by_ip.pop(lease.ip, None)
        self._offered.discard(lease.mac)
