"""From gvproxy's flags and file to the service's settings.

Flags go before the file, except for the subnet and its addresses, where the file goes first. Without a file there are
two DNS zones, the host's search domains, an SSH port and an address kept for the VM; with one, only what it says.
Raises ConfigError with gvproxy's sentences; what gvproxy would take and Moorage cannot do is refused with its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from proto.logrus import LogFormat
from supervisor.attach.kinds import MAX_MTU
from supervisor.config import MIN_MTU, Settings, load
from supervisor.errors import ConfigError
from supervisor.gvproxy.addresses import Addresses, choose
from supervisor.gvproxy.command_line import SSH_PORT
from supervisor.gvproxy.listening import KIND_OF, Listening, choose_listening
from supervisor.gvproxy.yaml_file import ConfigFile, SshForward

DEVICE_MAC = "5a:94:ef:e4:0c:ee"
DEVICE_UUID = "c3d68012-0208-11ea-9fd7-f2189899ab08"
NO_SSH_PORT = -1
LEVELS = {
    **dict.fromkeys(("panic", "fatal", "error"), "error"),
    **dict.fromkeys(("warn", "warning"), "warning"),
    "info": "info",
    **dict.fromkeys(("debug", "trace"), "debug"),
}
"""logrus's, and ours."""
LOG_FORMAT: LogFormat = "logrus"
RUNTIME = "run"
"""The part of a run's own directory that has its sockets."""
NO_DUMPS = (
    "-debug: packets are not dumped here, -pcap FILE and `moorage capture` show them; nor are bytes counted every 5 s, "
    "and there is no /debug/pprof: see /stats, /v1/vms and /metrics"
)
"""What `-debug` has there and not here."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run."""

    values: dict[str, Any]
    """Of `Settings`, all but its directories."""
    pid_file: str
    listening: Listening
    failure: str
    """Why gvproxy would end as soon as it has started; mostly empty."""
    api: tuple[str, ...]
    """Where the API listens, as asked for."""
    services: str
    warnings: list[str] = field(default_factory=list)

    def settings(self, directory: Path) -> Settings:
        """With everything that is kept in a directory of the run's own. Raises ConfigError."""
        return load({**self.values, "runtime-dir": directory / RUNTIME, "state-dir": directory / "state"}, None)


def make(flags: Mapping[str, Any], file: ConfigFile | None) -> Plan:
    """The plan of a command line and a file. Raises ConfigError."""
    given = file or ConfigFile()
    addresses = choose(
        given.stack.subnet or flags["subnet"],
        given.stack.gateway_ip or flags["gatewayIP"],
        given.stack.device_ip or flags["deviceIP"],
        given.stack.host_ip or flags["hostIP"],
    )
    warnings: list[str] = []
    api = tuple(flags["listen"] or given.listen)
    services = flags["services"] or given.services
    attach = {name: flags[f"listen-{name}"] or getattr(given.interfaces, name) for name in KIND_OF}
    listening = choose_listening(attach, api, services)
    level = "debug" if flags["debug"] or given.stack.debug else _level(given.log_level, warnings)
    if level == "debug":
        warnings.append(NO_DUMPS)
    mtu = flags["mtu"] or given.stack.mtu
    values: dict[str, Any] = {
        "listen": tuple(listening.listeners),
        "api": tuple(listening.api),
        "services": tuple(listening.services),
        "forwards": [*_ports(flags, file, addresses, warnings), *_ssh_forwards(flags, given, addresses)],
        "forward-dual-stack": True,
        "networks": {"default": _network(given, addresses, flags, file is not None) | _mtu(mtu)},
        "vpnkit-uuid-macs": given.stack.uuid_macs if file else {DEVICE_UUID: DEVICE_MAC},
        "log-level": level,
        "log-format": LOG_FORMAT,
    }
    if capture_file := flags["pcap"] or given.stack.capture_file:
        values["capture-file"] = capture_file
    if notification := _notification(flags["notification"], given.notification):
        values["notification"] = notification
    pid_file = flags["pid-file"] or given.pid_file
    failure = "mtu is out of range" if mtu < 0 else listening.failure
    return Plan(values, pid_file, listening, failure, api, services, warnings)


def _level(name: str, warnings: list[str]) -> str:
    if name.lower() not in LEVELS:
        warnings.append(f"not a valid log level: {name}; it is info")
    return LEVELS.get(name.lower(), "info")


def _notification(flag: str, path: str) -> str:
    if flag and not flag.lower().startswith("unix:"):
        raise ConfigError("notification listen address must be unix:// address")
    return flag or (f"unix://{os.path.abspath(path)}" if path and "://" not in path else path)


# --- forwards


def _ports(
    flags: Mapping[str, Any], file: ConfigFile | None, addresses: Addresses, warnings: list[str]
) -> list[dict[str, str]]:
    port = flags["ssh-port"]
    if file is not None:
        if port != SSH_PORT:
            warnings.append("-ssh-port is ignored with -config; see stack.forwards")
        return [_port_forward(local, remote) for local, remote in file.stack.forwards.items()]
    if port == NO_SSH_PORT:
        return []
    if not 1024 <= port <= 65535:
        raise ConfigError("ssh-port value must be between 1024 and 65535")
    return [_port_forward(f"127.0.0.1:{port}", f"{addresses.device}:22")]


def _port_forward(local: str, remote: str) -> dict[str, str]:
    protocol = "udp" if local.startswith("udp:") else "tcp"
    return {"local": local.removeprefix("udp:"), "remote": remote, "protocol": protocol}


def _ssh_forwards(flags: Mapping[str, Any], given: ConfigFile, addresses: Addresses) -> list[dict[str, str]]:
    columns = [flags[f"forward-{name}"] for name in ("sock", "dest", "user", "identity")]
    if len(set(map(len, columns))) > 1:
        raise ConfigError(
            "-forward-sock, -forward-dest, -forward-user, -forward-identity: expected equally many of each"
        )
    rows = (SshForward(socket=row[0], dest=row[1], user=row[2], identity=row[3]) for row in zip(*columns, strict=True))
    return [_ssh_forward(row, addresses) for row in (*given.forwards, *rows)]


def _ssh_forward(row: SshForward, addresses: Addresses) -> dict[str, str]:
    scheme, is_url, path = row.socket.partition("://")
    if is_url and scheme == "npipe":
        raise ConfigError(f"{row.socket}: named pipes are not supported by this platform")
    if is_url and (scheme != "unix" or not path.startswith("/")):
        raise ConfigError(f"{row.socket}: expected unix:///PATH or a path")
    try:
        os.stat(row.identity)
    except OSError as error:
        reason = f"stat {row.identity}: {(error.strerror or str(error)).lower()}"
        raise ConfigError(f'identity file "{row.identity}" can\'t be loaded: {reason}') from error
    key = quote(os.path.abspath(row.identity))
    remote = f"ssh-tunnel://{quote(row.user)}@{addresses.device}:22{quote(row.dest)}?key={key}"
    return {"local": unquote(path) if is_url else row.socket, "remote": remote, "protocol": "unix"}


# --- the network


def _network(given: ConfigFile, addresses: Addresses, flags: Mapping[str, Any], has_file: bool) -> dict[str, Any]:
    stack = given.stack
    known = {str(addresses.gateway), str(addresses.host), *stack.nat}
    for address in stack.virtual_ips:
        if address not in known:
            raise ConfigError(f"stack.gatewayVirtualIPs: {address} leads nowhere; say where in stack.nat")
    network: dict[str, Any] = {
        "subnet": str(addresses.subnet),
        "gateway-ip": addresses.gateway,
        "host-ip": addresses.host,
        "nat": stack.nat or None,
        "guest-api": True,
        "link-local": flags["ec2-metadata-access"] or given.ec2_metadata_access or stack.ec2_metadata_access,
        "dhcp-static-leases": stack.static_leases if has_file else {addresses.device: DEVICE_MAC},
        "dns": {
            "own-zones": not has_file,
            "zones": [
                {
                    "name": zone.name,
                    "records": [record.model_dump() for record in zone.records],
                    "default-ip": zone.default_ip,
                }
                for zone in stack.dns
            ],
            "search-domains": stack.search_domains if has_file else None,
        },
    }
    return network | ({"gateway-mac": stack.gateway_mac} if stack.gateway_mac else {})


def _mtu(mtu: int) -> dict[str, int]:
    """What the network has of it; of a negative one nothing: gvproxy starts before it says so."""
    if mtu > 0 and not MIN_MTU <= mtu <= MAX_MTU:
        raise ConfigError(f"mtu {mtu} is not possible: expected {MIN_MTU} to {MAX_MTU}, or 0 for 1500")
    return {"mtu": mtu} if mtu > 0 else {}
