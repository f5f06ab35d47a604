"""The subnet and the three addresses of gvproxy's configuration, and what it says of those that cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from supervisor.config import MAX_PREFIX
from supervisor.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who is who on the VM's network."""

    subnet: IPv4Network
    gateway: IPv4Address
    device: IPv4Address
    """The VM's."""
    host: IPv4Address


def choose(subnet: str, gateway: str, device: str, host: str) -> Addresses:
    """The addresses given; where one is empty, the first, second and last of the subnet. Raises ConfigError."""
    try:
        network = IPv4Network(subnet, strict=False) if "/" in subnet else None
    except ValueError:
        network = None
    if network is None:
        raise ConfigError(f"failed to parse subnet: invalid CIDR address: {subnet}")
    if network.prefixlen > MAX_PREFIX:
        raise ConfigError(f"failed to use subnet {network}: subnet too small")
    first, last = network.network_address + 1, network.broadcast_address - 1
    found = Addresses(
        network,
        _address(gateway, first, network),
        _address(device, first + 1, network),
        _address(host, last, network),
    )
    if len({found.gateway, found.device, found.host}) < 3:
        raise _invalid("IP addresses need to be distinct")
    return found


def _address(text: str, default: IPv4Address, subnet: IPv4Network) -> IPv4Address:
    if not text:
        return default
    try:
        address = IPv4Address(text)
    except AddressValueError as error:
        raise _invalid(f"invalid IP address: {text}") from error
    if address not in subnet:
        raise _invalid(f"IP ({address}) not in subnet ({subnet})")
    if address == subnet.network_address:
        raise _invalid(f"IP must not be address of subnet: {address}")
    if address == subnet.broadcast_address:
        raise _invalid(f"IP must not be broadcast address: {address}")
    return address


def _invalid(reason: str) -> ConfigError:
    return ConfigError(f"failed to validate configuration IPs: {reason}")
