"""The service's settings: defaults, the configuration file, the command line; in that order, the later wins.

The file is YAML with the names of the flags as keys::

    listen: ["qemu=unix:///run/vm/qemu.sock,allow-uid=1000", "qemu=tcp://127.0.0.1:9000"]
    api: ["unix:///run/vm/api.sock"]
    subnet: 192.168.127.0/24
    mtu: 1500
    networks:
      lab: {subnet: 10.1.0.0/24, gateway-ip: 10.1.0.254, mtu: 9000}
      tenants: {mode: isolated}
    vpnkit-uuid-macs: {c3d68012-0208-11ea-9fd7-f2189899ab08: "5a:94:ef:e4:0c:ee"}

``subnet`` and ``mtu`` are those of the network ``default``, and of every network that does not say its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from proto.logrus import LogFormat
from proto.messages import ForwardSource, NetworkMode
from supervisor.attach.kinds import MAX_MTU, ListenerSpec, parse_listener
from supervisor.attach.options import DEFAULT_NETWORK
from supervisor.dns_settings import DnsSettings, RecordSettings, ZoneSettings
from supervisor.endpoints import UNIX, StreamEndpoint, UnixEndpoint, parse_endpoint
from supervisor.errors import ConfigError

MIN_MTU = 576
"""RFC 791: what every host must be able to take."""
MAX_PREFIX = 29
"""Room for the gateway, the host alias and at least one VM."""
MIN_PREFIX = 8
NAME = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""Of a network: one label of a DNS name."""
MAC = re.compile("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
GATEWAY_MAC = "5a:94:ef:e4:0c:dd"
HOST_LOOPBACK = IPv4Address("127.0.0.1")


def _listener(value: object) -> ListenerSpec:
    if isinstance(value, ListenerSpec):
        return value
    return parse_listener(value if isinstance(value, str) else repr(value))


def _endpoint(value: object) -> StreamEndpoint:
    if isinstance(value, StreamEndpoint):
        return value
    endpoint = parse_endpoint(value if isinstance(value, str) else repr(value))
    assert isinstance(endpoint, StreamEndpoint), endpoint
    return endpoint


def _unix_endpoint(value: object) -> UnixEndpoint:
    endpoint = parse_endpoint(value if isinstance(value, str) else repr(value), (UNIX,))
    assert isinstance(endpoint, UnixEndpoint), endpoint
    return endpoint


def _subnet(value: object) -> IPv4Network:
    try:
        subnet = IPv4Network(value) if isinstance(value, str) else None
    except ValueError:
        subnet = None
    if subnet is None or not MIN_PREFIX <= subnet.prefixlen <= MAX_PREFIX:
        raise ValueError(
            f"expected an IPv4 network such as 192.168.127.0/24, between /{MIN_PREFIX} and /{MAX_PREFIX}; got {value!r}"
        )
    return subnet


def _ports(value: object) -> tuple[range, ...]:
    if isinstance(value, bool):
        return (range(1 << 16),) if value else ()
    ranges = [re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(text)) for text in value] if isinstance(value, list) else []
    found = [range(int(match[1]), int(match[2] or match[1]) + 1) for match in ranges if match]
    if not found or len(found) < len(ranges) or not all(0 <= ports.start < ports.stop <= 1 << 16 for ports in found):
        raise ValueError(f'expected true, false or a list of ports such as ["8000-8999"]; got {value!r}')
    return tuple(found)


def _subnet_of(value: object) -> tuple[str, IPv4Network]:
    name, given, subnet = value.partition("=") if isinstance(value, str) else ("", "", "")
    if not given:
        raise ValueError(f"expected NAME=SUBNET such as lab=10.1.0.0/24; got {value!r}")
    return _name(name), _subnet(subnet)


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"expected a network's name of lower-case letters, digits and dashes; got {name!r}")
    return name


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as error:
        raise ValueError(f"expected a UUID such as c3d68012-0208-11ea-9fd7-f2189899ab08; got {text!r}") from error


def _mac(text: str) -> str:
    if not MAC.fullmatch(text) or int(text[1], 16) & 1:
        raise ValueError(f"expected a unicast MAC such as 5a:94:ef:e4:0c:ee; got {text!r}")
    return text.lower()


def _keyed(name: str) -> str:
    return name.replace("_", "-")


Subnet = Annotated[IPv4Network, BeforeValidator(_subnet)]
Mtu = Annotated[int, Field(ge=MIN_MTU, le=MAX_MTU)]
Mac = Annotated[str, AfterValidator(_mac)]


class NetworkSettings(BaseModel):
    """One network of the configuration. `None`: as the service's settings say."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_keyed, arbitrary_types_allowed=True)

    subnet: Subnet | None = None
    gateway_ip: IPv4Address | None = None
    """`None`: the subnet's first address."""
    gateway_mac: Mac = GATEWAY_MAC
    host_ip: IPv4Address | None = None
    """`None`: the subnet's last address."""
    nat: dict[IPv4Address, IPv4Address] | None = None
    """Where packets to an address go instead; `None`: those to the host address to the host's own loopback."""
    mtu: Mtu | None = None
    mode: NetworkMode = "shared"
    port_security: bool = True
    link_local: bool = False
    """169.254.0.0/16 of the host's network, where clouds keep their metadata, may be reached."""
    guest_api: Annotated[tuple[range, ...], BeforeValidator(_ports)] = ()
    """Guests may forward ports of these of the host to themselves, by ``http://GATEWAY/services/forwarder/expose``."""
    dhcp_static_leases: dict[IPv4Address, Mac] = {}
    dns: DnsSettings | None = None


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network that the service runs."""

    subnet: IPv4Network
    mtu: int
    mode: NetworkMode = "shared"
    port_security: bool = True
    """A VM speaks to others only as who it is: with its own MAC and address."""
    static_leases: dict[IPv4Address, str] = field(default_factory=dict)
    """Address -> the MAC that it is kept for."""
    dns: DnsSettings = field(default_factory=DnsSettings)
    gateway: IPv4Address | None = None
    gateway_mac: str = GATEWAY_MAC
    host: IPv4Address | None = None
    chosen_nat: dict[IPv4Address, IPv4Address] | None = None
    link_local: bool = False
    """169.254.0.0/16 of the host's network may be reached."""
    guest_api: tuple[range, ...] = ()
    """Ports of the host that guests may forward to themselves; empty: they may not ask."""

    @property
    def gateway_ip(self) -> IPv4Address:
        """The one chosen, or the first address."""
        return self.gateway or self.subnet.network_address + 1

    @property
    def host_ip(self) -> IPv4Address:
        """The one chosen, or the last address."""
        return self.host or self.subnet.broadcast_address - 1

    @property
    def nat(self) -> dict[IPv4Address, IPv4Address]:
        """Guest-side address -> host-side address."""
        return {self.host_ip: HOST_LOOPBACK} if self.chosen_nat is None else self.chosen_nat


class ForwardSettings(BaseModel):
    """A forward that is there from the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    local: str
    remote: str
    protocol: str = "tcp"
    network: str = DEFAULT_NETWORK
    vm: str = ""


class Settings(BaseModel):
    """What the operator may choose. `None`: the default that depends on the user or the runtime directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_keyed, arbitrary_types_allowed=True)

    listen: tuple[Annotated[ListenerSpec, BeforeValidator(_listener)], ...] | None = None
    api: tuple[Annotated[StreamEndpoint, BeforeValidator(_endpoint)], ...] | None = None
    services: tuple[Annotated[StreamEndpoint, BeforeValidator(_endpoint)], ...] = ()
    """Where the API listens as well, but no VM may attach by it."""
    notification: Annotated[UnixEndpoint, BeforeValidator(_unix_endpoint)] | None = None
    """Who is told what happens to VMs (`supervisor.notifications`)."""
    mtu: Mtu = 1500
    subnet: Subnet = IPv4Network("192.168.127.0/24")
    network: tuple[Annotated[tuple[str, IPv4Network], BeforeValidator(_subnet_of)], ...] = ()
    """Networks by name and subnet; goes before what `networks` says of the subnet."""
    networks: dict[Annotated[str, AfterValidator(_name)], NetworkSettings] = {}
    dhcp_static_leases: dict[IPv4Address, Mac] = {}
    dns: DnsSettings = DnsSettings()
    forwards: tuple[ForwardSettings, ...] = ()
    forward_source: ForwardSource = "keep"
    forward_dual_stack: bool = False
    """A forward of `0.0.0.0` or `[::]` is one of all addresses, IPv4 and IPv6, as in Go."""
    vpnkit_uuid_macs: dict[Annotated[str, AfterValidator(_uuid)], Mac] = {}
    """MACs of VMs that say who they are by a UUID; others get one and keep it."""
    capture_file: Path | None = None
    """Gets the traffic of all VMs."""
    runtime_dir: Path | None = None
    state_dir: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: LogFormat = "text"

    def all_networks(self) -> dict[str, NetworkSpec]:
        """Every network, the default one first."""
        subnets = dict(self.network)
        named = dict.fromkeys((DEFAULT_NETWORK, *self.networks, *subnets), NetworkSettings()) | self.networks
        specs = {
            name: NetworkSpec(
                subnets.get(name) or given.subnet or self.subnet,
                given.mtu or self.mtu,
                given.mode,
                given.port_security,
                dict(given.dhcp_static_leases),
                given.dns or self.dns,
                given.gateway_ip,
                given.gateway_mac,
                given.host_ip,
                given.nat,
                given.link_local,
                given.guest_api,
            )
            for name, given in named.items()
        }
        specs[DEFAULT_NETWORK].static_leases.update(self.dhcp_static_leases)
        return specs


_MODELS: dict[str, type[BaseModel]] = {
    "networks": NetworkSettings,
    "forwards": ForwardSettings,
    "dns": DnsSettings,
    "zones": ZoneSettings,
    "records": RecordSettings,
}
"""What stands below a key."""


def load(flags: Mapping[str, object], file: Path | None) -> Settings:
    """The settings of a command line (flags by name, without dashes in front) and a file.

    Raises ConfigError that names the file, the key or flag, and what was expected.
    """
    from_file = _read(file) if file is not None else {}
    _validate(from_file, f"{file}: ")
    settings = _validate(from_file | dict(flags), "--")
    known = settings.all_networks()
    for name, spec in known.items():
        _check_addresses(name, spec)
        _check_static_leases(name, spec)
    for listener in settings.listen or ():
        network = known.get(listener.options.network)
        if network is None:
            raise ConfigError(
                f"listen: {listener.kind}={listener.endpoint}: expected network=NAME with NAME one of "
                f"{', '.join(known)}; got {listener.options.network!r}"
            )
        if network.mtu > listener.max_mtu:
            raise ConfigError(
                f"listen: {listener.kind}={listener.endpoint}: expected a network with an mtu of at most "
                f"{listener.max_mtu}; got {listener.options.network} with {network.mtu}"
            )
    return settings


def _check_addresses(name: str, spec: NetworkSpec) -> None:
    ends = (spec.subnet.network_address, spec.subnet.broadcast_address)
    for key, ip in (("gateway-ip", spec.gateway_ip), ("host-ip", spec.host_ip)):
        if ip not in spec.subnet or ip in ends:
            raise ConfigError(f"networks.{name}.{key}: expected an address of {spec.subnet}; got {ip}")
    if spec.gateway_ip == spec.host_ip:
        raise ConfigError(f"networks.{name}.host-ip: expected another address than the gateway's; got {spec.host_ip}")


def _check_static_leases(name: str, spec: NetworkSpec) -> None:
    reserved = (spec.subnet.network_address, spec.gateway_ip, spec.host_ip, spec.subnet.broadcast_address)
    for ip in spec.static_leases:
        if ip not in spec.subnet or ip in reserved:
            raise ConfigError(
                f"dhcp-static-leases: expected a VM's address on {spec.subnet}, the subnet of {name}; got {ip}"
            )
    if len(set(spec.static_leases.values())) < len(spec.static_leases):
        raise ConfigError(f"dhcp-static-leases: expected one address for each MAC on network {name}")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected keys and values, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _validate(values: Mapping[str, object], source: str) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        *path, last = (str(step) for step in first["loc"] if step != "[key]" and not isinstance(step, int))
        key = ".".join((*path, last))
        if first["type"] == "extra_forbidden":
            model = next((_MODELS[step] for step in reversed(path) if step in _MODELS), Settings)
            known = ", ".join(map(_keyed, model.model_fields))
            raise ConfigError(f"{source}{key}: unknown key; expected one of {known}") from error
        message = first["msg"].removeprefix("Value error, ")
        got = "" if "got" in message else f"; got {first['input']!r}"
        raise ConfigError(f"{source}{key}: {message}{got}") from error
