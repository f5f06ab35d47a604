"""One network: its addresses, who holds them, its DNS zones; and what workers are told of it.

On a shared network an address and a MAC belong to one VM. On an isolated one each VM is alone with the whole subnet:
it has leases of its own, which end with it, and all VMs may have the first address.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address

from proto import messages
from proto.messages import Lease, Upstream, Zone, ZoneRecord
from supervisor.config import NetworkSpec
from supervisor.hostnames import HostNames
from supervisor.leases import LeasePool
from supervisor.realm import Realm
from supervisor.resolver import HostResolver
from supervisor.state import State
from supervisor.zones import NetworkZones, check_zone

LEASE_TIME = 3600
"""s"""
DEFAULT_ZONES = ("containers.internal.", "docker.internal.")


class Network:
    """A network as the supervisor keeps it."""

    def __init__(self, name: str, spec: NetworkSpec, state: State, is_attached: Callable[[str], bool]) -> None:
        self.name = name
        self.spec = spec
        self.is_shared = spec.mode == "shared"
        self._state = state
        self._is_attached = is_attached
        self.gateway_ip = str(spec.gateway_ip)
        self.host_ip = str(spec.host_ip)
        self._realms: dict[str, Realm] = {}
        """By VM; of a shared network there is one, which belongs to none."""
        if self.is_shared:
            self._realm("").restore(state.leases(name))
        self._zones = NetworkZones(self._own_zones(), state.zones(name))
        self._described = messages.Network(
            name=name,
            subnet=str(spec.subnet),
            gateway_ip=self.gateway_ip,
            gateway_mac=spec.gateway_mac,
            host_ip=self.host_ip,
            mtu=spec.mtu,
            lease_time=LEASE_TIME,
            zones=self._zones.all,
            search_domains=spec.dns.search_domains or (),
            domain_upstreams=dict(spec.dns.upstreams),
            nat={str(guest_side): str(host_side) for guest_side, host_side in spec.nat.items()},
            link_local=spec.link_local,
            guest_api=bool(spec.guest_api),
        )

    def info(self, now: float) -> messages.NetworkInfo:
        """What the API shows."""
        return messages.NetworkInfo(
            name=self.name,
            subnet=str(self.spec.subnet),
            gateway_ip=self.gateway_ip,
            gateway_mac=self.spec.gateway_mac,
            host_ip=self.host_ip,
            mtu=self.spec.mtu,
            mode=self.spec.mode,
            port_security=self.spec.port_security,
            macs=self.macs(now),
        )

    def describe(self, vm_id: str, now: float) -> messages.Network:
        """What the worker of a VM must know."""
        return dataclasses.replace(self._described, hosts=self._realm(vm_id).names.table(now))

    # --- addresses

    def leases(self, now: float) -> tuple[Lease, ...]:
        """The leases that run, the static ones whether they are used or not."""
        running = [lease for realm in self._realms.values() for lease in realm.leases if lease.expires_at > now]
        used = {lease.ip for lease in running}
        unused = [
            Lease(self.name, str(ip), mac, 0, static=True)
            for ip, mac in self.spec.static_leases.items()
            if str(ip) not in used
        ]
        return tuple(dataclasses.replace(lease, expires_at=0) if lease.static else lease for lease in running + unused)

    def request_lease(self, asked: messages.LeaseRequest, now: float) -> Lease:
        """Answer a guest. Raises RequestFailed as `Realm.request_lease`."""
        lease = self._realm(asked.vm_id).request_lease(asked, now)
        if asked.commit and self.is_shared:
            self._state.save_lease(lease)
        return lease

    def release_lease(self, asked: messages.LeaseRelease, now: float) -> None:
        """A guest gave its address back or found it in use; of another VM's lease nothing is done."""
        ended = self._realm(asked.vm_id).release_lease(asked, now)
        if ended is None or not self.is_shared:
            return
        if asked.declined:
            self._state.delete_lease(self.name, ended.mac)
        else:
            self._state.save_lease(ended)

    def see(self, vm_id: str, mac: str, ip: str, now: float) -> bool:
        """A VM uses an address; False when the address is not its to use."""
        return self._realm(vm_id).see(vm_id, mac, ip, now)

    def other_owner(self, vm_id: str, mac: str) -> str:
        """Who has a MAC, if not this VM; empty: nobody."""
        return self._realm(vm_id).other_owner(vm_id, mac)

    def claim_mac(self, vm_id: str, mac: str, now: float) -> bool:
        """A VM uses a MAC; False when it may not, as `Realm.claim_mac` says."""
        return self._realm(vm_id).claim_mac(vm_id, mac, now)

    def identity(self, vm_id: str, now: float) -> tuple[str, tuple[str, ...]]:
        """What a VM may call itself: its MAC, and the addresses it may speak from."""
        return self._realm(vm_id).identity(vm_id, now)

    def macs(self, now: float) -> dict[str, str]:
        """Every MAC that is known of the VMs here, and whose it is; of isolated VMs with the same MAC, one."""
        return {mac: vm_id for realm in self._realms.values() for mac, vm_id in realm.macs(now).items()}

    def holder(self, ip: str, now: float, vm_id: str = "") -> str:
        """The id of the VM that has an address; empty: none. On an isolated network `vm_id` says whose is meant."""
        realm = self._realms.get("" if self.is_shared else vm_id)
        return realm.holder(ip, now) if realm is not None else ""

    def address_of(self, host: str, now: float, vm_id: str = "") -> str:
        """The IPv4 address of a host of this network: itself, a guest's by its DHCP host name, or a zone's record;
        empty: there is none. With `vm_id` no other VM's name counts."""
        if _is_ipv4(host):
            return host
        name = host.rstrip(".").lower()
        realm = self._realms.get("" if self.is_shared else vm_id)
        if realm is not None:
            known = realm.names.table(now).get(name.removesuffix(f".{self.name}.internal"), "")
            lease = realm.leases.owner(known, now)
            if lease is not None and vm_id in ("", lease.vm_id):
                return lease.ip
        for zone in self.zones:
            for record in zone.records:
                if record.name and f"{record.name}.{zone.name}".rstrip(".").lower() == name and _is_ipv4(record.ip):
                    return record.ip
        return ""

    def forget(self, vm_id: str) -> None:
        """A VM is gone."""
        if self.is_shared:
            self._realm("").forget(vm_id)
        else:
            self._realms.pop(vm_id, None)

    def _realm(self, vm_id: str) -> Realm:
        """Where the addresses of a VM belong."""
        owner = "" if self.is_shared else vm_id
        if owner not in self._realms:
            reserved = (self.spec.gateway_ip, self.spec.host_ip, *self.spec.nat)
            static = {str(ip): mac for ip, mac in self.spec.static_leases.items()}
            pool = LeasePool(self.name, self.spec.subnet, reserved, LEASE_TIME, self._is_attached, static)
            names = HostNames(pool, {"gateway": self.gateway_ip, "host": self.host_ip})
            self._realms[owner] = Realm(pool, names, self.spec.gateway_mac, self._is_attached)
        return self._realms[owner]

    # --- names

    @property
    def zones(self) -> tuple[Zone, ...]:
        """In the order they are asked."""
        return self._zones.all

    def add_zone(self, zone: Zone) -> None:
        """Add a zone, or put its records before those of the zone of its name. Raises as `NetworkZones.add`."""
        self._state.save_zone(self.name, self._zones.add(zone))
        self._described = dataclasses.replace(self._described, zones=self._zones.all)

    def remove_zone(self, name: str) -> None:
        """Take back all that was added to a zone. Raises as `NetworkZones.remove`."""
        self._zones.remove(name)
        self._state.delete_zone(self.name, name)
        self._described = dataclasses.replace(self._described, zones=self._zones.all)

    def use_resolver(self, resolver: HostResolver) -> None:
        """Take over the host's name servers, and its search domains where none are configured."""
        configured = self.spec.dns.search_domains
        self._described = dataclasses.replace(
            self._described,
            upstreams=tuple(Upstream(address) for address in resolver.nameservers),
            search_domains=resolver.search_domains if configured is None else configured,
        )

    def _own_zones(self) -> list[Zone]:
        records = (ZoneRecord(self.gateway_ip, name="gateway"), ZoneRecord(self.host_ip, name="host"))
        zones = [Zone(name, records) for name in DEFAULT_ZONES] if self.spec.dns.own_zones else []
        return zones + [check_zone(zone.zone()) for zone in self.spec.dns.zones]


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True
