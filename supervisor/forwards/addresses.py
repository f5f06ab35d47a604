"""What a caller may write as the two ends of a forward, and what gvproxy says of anything else.

The texts are gvproxy's, which are mostly those of Go's `net`, `net/url` and `strconv`: its clients match on them.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, unquote_plus, urlsplit

from proto.errors import RequestFailed
from proto.ssh import CarrySsh

HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
SSH_PORT = 22
PASSPHRASE = "passphrase"
REDACTED = "REDACTED"
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """A port of a guest; `host` is an IPv4 address, or a name on the network."""

    host: str
    port: int


def parse_local(protocol: str, local: str) -> tuple[str, int]:
    """Host (empty: all addresses) and port to listen on. Raises RequestFailed."""
    listen = "listen tcp: " if protocol == "tcp" else ""  # Go resolves a UDP address before it listens
    host, colon, port = local.rpartition(":")
    if not colon or local.endswith("]"):
        raise _refused(f"{listen}address {local}: missing port in address")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _refused(f"{listen}address {local}: too many colons in address")
    if not _is_number(port or "0"):
        return host, _port_of_service(protocol, port, listen)
    if _value(port or "0") > MAX_PORT:
        raise _refused(f"{listen}address {port}: invalid port")
    return host, _value(port or "0")


def _port_of_service(protocol: str, name: str, listen: str) -> int:
    """As services(5) has it. Raises RequestFailed."""
    try:
        return socket.getservbyname(name.lower(), protocol)
    except (OSError, ValueError) as error:  # a name that no service could have is a ValueError
        raise _refused(f"{listen}lookup {protocol}/{name}: unknown port") from error


def parse_remote(protocol: str, remote: str) -> GuestAddress | CarrySsh:
    """Where a forward leads. Raises RequestFailed."""
    if protocol in ("tcp", "udp"):
        return _guest_address(remote)
    shown = redacted(remote)
    try:
        url = urlsplit(remote)
        port = url.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    except ValueError as error:
        raise _refused(f'failed to parse remote uri :{shown} : parse "{shown}": {error}') from error
    if not url.scheme and ":" in remote.partition("/")[0]:
        reason = f'parse "{shown}": first path segment in URL cannot contain colon'
        raise _refused(f"failed to parse remote uri :{shown} : {reason}")
    if url.scheme == "tcp":
        return _guest_address(f"{url.hostname or ''}:{port}")
    if url.scheme == "ssh-tunnel":
        return _ssh_destination(url, port)
    raise _refused(f"remote protocol for unix forwarder is not implemented: {url.scheme}")


def redacted(remote: str) -> str:
    """A remote end as it may be shown: without the passphrase of an SSH key."""
    address, mark, query = remote.partition("?")
    return address + mark + "&".join(map(_redacted_parameter, query.split("&")))


def parse_port(text: str) -> int:
    """What Go's `strconv.ParseUint(text, 10, 16)` takes. Raises RequestFailed."""
    if not _is_number(text):
        raise _refused(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if _value(text) > MAX_PORT:
        raise _refused(f'strconv.ParseUint: parsing "{text}": value out of range')
    return _value(text)


def _guest_address(remote: str) -> GuestAddress:
    host, colon, port = remote.rpartition(":")
    if not colon:
        raise _refused(f"address {remote}: missing port in address")
    if ":" in host:
        raise _refused("invalid remote addr")
    number = parse_port(port)
    if not HOST_NAME.fullmatch(host):
        raise _refused("invalid remote addr")
    return GuestAddress(host, number)


def _ssh_destination(url: SplitResult, port: str) -> CarrySsh:
    query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    if not query.get("key"):
        raise _refused("key not provided for unix-ssh connection")
    if url.path in ("", "/"):
        raise _refused("remote uri must contain a path to a socket file")
    if not url.username:
        raise _refused("user not provided for unix-ssh connection")
    server = _guest_address(f"{url.hostname or ''}:{port or SSH_PORT}")
    return CarrySsh(
        unquote(url.username),
        server.host,
        server.port,
        unquote(url.path),
        query["key"],
        query.get(PASSPHRASE, ""),
        query.get("secure", "").lower() == "true",
    )


def _redacted_parameter(parameter: str) -> str:
    name, _, value = parameter.partition("=")
    return f"{name}={REDACTED}" if value and unquote_plus(name) == PASSPHRASE else parameter


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _value(digits: str) -> int:
    """Of a number as long as somebody cared to send."""
    return int(digits) if len(digits) < 20 else MAX_PORT + 1


def _refused(message: str) -> RequestFailed:
    return RequestFailed.because("bad-request", message)
