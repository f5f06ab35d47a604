"""Where a guest's traffic may go: the verdict for a destination nobody has decided on yet.

The gateway offers DHCP, DNS, NTP and, where the network has it, its API, and refuses everything else. An address of the
NAT table is carried to what it stands for (the host alias to the host's loopback). The rest of the guest's subnet
belongs to the virtual network and is never dialled on the host's, where the same numbers may mean another machine.
Addresses that are no destination for a datagram from elsewhere (RFC 6890) are dropped, so that none reaches the host's
loopback; link-local ones, where clouds keep their metadata, are refused unless the network may reach them. Everything
else is carried to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from proto.messages import Network
from worker.addr import narrow, pack_ipv4, widen
from worker.upcalls import Action

ICMP, TCP, UDP = 1, 6, 17
LOCAL_SERVICES = frozenset({(UDP, 53), (UDP, 67), (UDP, 123), (TCP, 53), (ICMP, 0)})
"""(protocol, port) that the gateway serves."""
API_SERVICE = (TCP, 80)
_MARTIANS = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")))
"""RFC 6890; 240/4 holds limited broadcast."""
_LINK_LOCAL = IPv4Network("169.254.0.0/16")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to traffic for a destination."""

    action: Action
    host_addr: bytes = b""
    """16 bytes, for CARRY."""
    host_port: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one network."""

    gateway: bytes
    subnet: IPv4Network
    nat: dict[bytes, bytes]
    """Guest-side -> host-side address, 4 bytes each."""
    link_local: bool = False
    """Link-local addresses may be reached."""
    local_services: frozenset[tuple[int, int]] = LOCAL_SERVICES

    @classmethod
    def of(cls, network: Network) -> Policy:
        """Raises ValueError where the network's addresses are none."""
        nat = {pack_ipv4(guest_side): pack_ipv4(host_side) for guest_side, host_side in network.nat.items()}
        services = LOCAL_SERVICES | {API_SERVICE} if network.guest_api else LOCAL_SERVICES
        return cls(
            pack_ipv4(network.gateway_ip), IPv4Network(network.subnet, strict=False), nat, network.link_local, services
        )

    def decide(self, proto: int, dst: bytes, dport: int) -> Verdict:
        """The verdict for (IP protocol, 16-byte destination, port; 0 for ICMP)."""
        packed = narrow(dst)
        if packed is None:
            return Verdict(Action.DROP)
        if packed == self.gateway:
            return Verdict(Action.LOCAL if (proto, dport) in self.local_services else Action.REFUSE)
        if packed in self.nat:
            return Verdict(Action.CARRY, widen(self.nat[packed]), dport)
        address = IPv4Address(packed)
        if address == self.subnet.broadcast_address or any(address in martians for martians in _MARTIANS):
            return Verdict(Action.DROP)
        if address in self.subnet:
            return Verdict(Action.UNREACHABLE)
        if address in _LINK_LOCAL and not self.link_local:
            return Verdict(Action.REFUSE)
        return Verdict(Action.CARRY, dst, dport)
