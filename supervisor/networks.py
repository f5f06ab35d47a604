"""One network: its addresses, who holds them, its DNS zones; and what workers are told of it."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, ip_address

from proto import messages
from proto.errors import RequestFailed
from proto.messages import Lease, Upstream, Zone, ZoneRecord
from supervisor.leases import LeasePool
from supervisor.resolver import HostResolver
from supervisor.state import State

GATEWAY_MAC = "5a:94:ef:e4:0c:dd"
LEASE_TIME = 3600
"""s"""
DEFAULT_ZONES = ("containers.internal.", "docker.internal.")
HOST_LOOPBACK = "127.0.0.1"
MAX_ZONES = 1000
MAX_RECORDS_PER_ZONE = 1000
"""Both together keep a network well inside one message to a worker."""
MAX_SEEN_PER_VM = 256
"""Addresses without a lease that a VM may hold."""

log = logging.getLogger(__name__)


class Network:
    """A network as the supervisor keeps it."""

    def __init__(
        self, name: str, subnet: IPv4Network, mtu: int, state: State, is_attached: Callable[[str], bool]
    ) -> None:
        self.name = name
        self._state = state
        self._is_attached = is_attached
        self.gateway_ip = str(subnet.network_address + 1)
        self.host_ip = str(subnet.broadcast_address - 1)
        reserved = (IPv4Address(self.gateway_ip), IPv4Address(self.host_ip))
        self._leases = LeasePool(name, subnet, reserved, LEASE_TIME, is_attached)
        self._leases.restore(state.leases(name))
        self._seen: dict[str, str] = {}
        """Address without a lease -> VM seen to use it."""
        self._described = messages.Network(
            name=name,
            subnet=str(subnet),
            gateway_ip=self.gateway_ip,
            gateway_mac=GATEWAY_MAC,
            host_ip=self.host_ip,
            mtu=mtu,
            lease_time=LEASE_TIME,
            zones=self._restored_zones(),
            nat={self.host_ip: HOST_LOOPBACK},
        )

    def describe(self) -> messages.Network:
        """What a worker must know."""
        return self._described

    # --- addresses

    def leases(self, now: float) -> tuple[Lease, ...]:
        """The leases that run."""
        return tuple(lease for lease in self._leases if lease.expires_at > now)

    def request_lease(self, asked: messages.LeaseRequest, now: float) -> Lease:
        """Answer a guest. Raises RequestFailed as `LeasePool.request`."""
        lease = self._leases.request(asked.vm_id, asked.mac, asked.requested_ip, asked.hostname, asked.commit, now)
        if asked.commit:
            self._state.save_lease(lease)
        return lease

    def release_lease(self, asked: messages.LeaseRelease, now: float) -> None:
        """A guest gave its address back or found it in use; of another VM's lease nothing is done."""
        ended = self._leases.release(asked.vm_id, asked.mac, asked.ip, asked.declined, now)
        if ended is None:
            return
        if asked.declined:
            self._state.delete_lease(self.name, ended.mac)
        else:
            self._state.save_lease(ended)

    def see(self, vm_id: str, mac: str, ip: str, now: float) -> bool:
        """A VM uses an address; False when the address is not its to use."""
        if not self._leases.adopt(vm_id, mac, ip, now):
            return False
        if self._is_attached(self._seen.get(ip, "")):
            return self._seen[ip] == vm_id
        if sum(holder == vm_id for holder in self._seen.values()) >= MAX_SEEN_PER_VM:
            return False
        self._seen[ip] = vm_id
        return True

    def holder(self, ip: str, now: float) -> str:
        """The id of the VM that has an address, by lease before by use; empty: none."""
        lease = self._leases.owner(ip, now)
        if lease is not None and self._is_attached(lease.vm_id):
            return lease.vm_id
        return self._seen.get(ip, "")

    def forget(self, vm_id: str) -> None:
        """A VM is gone. Its leases run on: it may come back."""
        self._seen = {ip: holder for ip, holder in self._seen.items() if holder != vm_id}

    # --- names

    @property
    def zones(self) -> tuple[Zone, ...]:
        """In the order they are asked."""
        return self._described.zones

    def add_zone(self, zone: Zone) -> None:
        """Add a zone, or put its records before those of the zone of its name.

        The default address is replaced, even by an empty one, as gvproxy does. Raises RequestFailed ``bad-request``.
        """
        _check_zone(zone)
        known = {old.name: old for old in self.zones}
        old = known.get(zone.name, Zone(zone.name))
        merged = Zone(zone.name, zone.records + old.records, zone.default_ip)
        if len(known | {zone.name: zone}) > MAX_ZONES or len(merged.records) > MAX_RECORDS_PER_ZONE:
            raise RequestFailed.because(
                "bad-request", f"more than {MAX_ZONES} zones or {MAX_RECORDS_PER_ZONE} records in a zone"
            )
        self._state.save_zone(self.name, merged)
        zones = tuple((known | {zone.name: merged}).values())
        self._described = dataclasses.replace(self._described, zones=zones)

    def use_resolver(self, resolver: HostResolver) -> None:
        """Take over the host's name servers and search domains."""
        self._described = dataclasses.replace(
            self._described,
            upstreams=tuple(Upstream(address) for address in resolver.nameservers),
            search_domains=resolver.search_domains,
        )

    def _restored_zones(self) -> tuple[Zone, ...]:
        records = (ZoneRecord(self.gateway_ip, name="gateway"), ZoneRecord(self.host_ip, name="host"))
        zones = {name: Zone(name, records) for name in DEFAULT_ZONES}
        zones |= {zone.name: zone for zone in self._state.zones(self.name)}
        return tuple(zones.values())


def _check_zone(zone: Zone) -> None:
    addresses = [record.ip for record in zone.records if record.ip] + [zone.default_ip] * bool(zone.default_ip)
    for address in addresses:
        try:
            ip_address(address)
        except ValueError as error:
            raise RequestFailed.because("bad-request", f"invalid IP address: {address}") from error
    for record in zone.records:
        try:
            re.compile(record.regexp)
        except re.error as error:
            reason = f"error parsing regexp: {error}: `{record.regexp}`"
            raise RequestFailed.because("bad-request", reason) from error
