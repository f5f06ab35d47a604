"""DHCP messages as a client writes and reads them (RFC 2131 section 2; options: RFC 2132, 3396, 3397).

Left out: classless routes (RFC 3442) and everything else that is not asked for in `REQUESTED_OPTIONS`.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

MIN_MESSAGE_SIZE = 300
"""Bytes; RFC 1542 2.1."""
MAX_MESSAGE_SIZE = 1472
"""Bytes; what fits a packet of 1,500."""
MAX_DOMAINS = 32
"""Search domains taken."""
MIN_LEASE_TIME = 10
"""s; what a lease lasts at least, however short the server says it is: nobody renews without pause."""
FOREVER = 0xFFFFFFFF
"""A lease time without end (RFC 2131 3.3)."""
MIN_MTU = 68
"""RFC 2132 5.1."""
ANY = IPv4Address(0)
BOOTREQUEST, BOOTREPLY = 1, 2
ETHERNET = 1
MAGIC = b"\x63\x82\x53\x63"

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_LABEL = re.compile(rb"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class Kind(enum.IntEnum):
    """DHCP message types (RFC 2132 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    ACK = 5
    NAK = 6


class Option(enum.IntEnum):
    """Codes of RFC 2132 and 3397."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTERS = 3
    DOMAIN_NAME_SERVERS = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    INTERFACE_MTU = 26
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETER_REQUEST_LIST = 55
    MAX_MESSAGE_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    DOMAIN_SEARCH = 119
    END = 255


REQUESTED_OPTIONS = (
    Option.SUBNET_MASK,
    Option.ROUTERS,
    Option.DOMAIN_NAME_SERVERS,
    Option.DOMAIN_NAME,
    Option.INTERFACE_MTU,
    Option.LEASE_TIME,
    Option.SERVER_ID,
    Option.RENEWAL_TIME,
    Option.REBINDING_TIME,
    Option.DOMAIN_SEARCH,
)


@dataclass(frozen=True)
class Lease:
    """What a server grants or offers; times are seconds from when it was asked for."""

    address: IPv4Interface
    server: IPv4Address
    routers: tuple[IPv4Address, ...]
    servers: tuple[IPv4Address, ...]
    """Of names."""
    search: tuple[str, ...]
    mtu: int | None
    lifetime: int
    """`FOREVER`: without end."""
    renewal: float
    """T1."""
    rebinding: float
    """T2."""


@dataclass(frozen=True)
class Message:
    """A server's message whose fields were all there."""

    kind: Kind
    xid: int
    mac: bytes
    address: IPv4Address
    """yiaddr"""
    options: dict[int, bytes]


def push_message(
    kind: Kind,
    xid: int,
    mac: bytes,
    secs: int,
    ciaddr: IPv4Address = ANY,
    requested: IPv4Address = ANY,
    server: IPv4Address = ANY,
    hostname: str = "",
) -> bytes:
    """A client's message; addresses that are `ANY` are not said."""
    options = _option(Option.MESSAGE_TYPE, bytes([kind]))
    if requested != ANY:
        options += _option(Option.REQUESTED_ADDRESS, requested.packed)
    if server != ANY:
        options += _option(Option.SERVER_ID, server.packed)
    if hostname:
        options += _option(Option.HOST_NAME, hostname.encode()[:63])
    options += _option(Option.MAX_MESSAGE_SIZE, struct.pack("!H", MAX_MESSAGE_SIZE))
    options += _option(Option.PARAMETER_REQUEST_LIST, bytes(REQUESTED_OPTIONS))
    fixed = _FIXED.pack(
        *(BOOTREQUEST, ETHERNET, len(mac), 0, xid, min(secs, 0xFFFF), 0, ciaddr.packed),
        *(bytes(4), bytes(4), bytes(4), mac, b"", b"", MAGIC),
    )
    return (fixed + options + bytes([Option.END])).ljust(MIN_MESSAGE_SIZE, b"\0")


def pull_message(payload: bytes) -> Message | None:
    """A server's message; None where it is none."""
    if len(payload) < _FIXED.size:
        return None
    op, hardware, hlen, _, xid, _, _, _, yiaddr, _, _, chaddr, sname, file, magic = _FIXED.unpack_from(payload)
    if (op, hardware, hlen, magic) != (BOOTREPLY, ETHERNET, 6, MAGIC):
        return None
    options: dict[int, bytes] = {}
    _pull_options(payload[_FIXED.size :], options)
    overload = options.get(Option.OVERLOAD, b"")
    # RFC 2131 4.1: bit 0 says that file holds options, bit 1 that sname does.
    for bit, field in ((1, file), (2, sname)):
        if len(overload) == 1 and overload[0] & bit:
            _pull_options(field, options)
    kind = options.get(Option.MESSAGE_TYPE, b"")
    if kind not in (bytes([Kind.OFFER]), bytes([Kind.ACK]), bytes([Kind.NAK])):
        return None
    return Message(Kind(kind[0]), xid, chaddr[:6], IPv4Address(yiaddr), options)


def pull_lease(message: Message) -> Lease | None:
    """What an OFFER or ACK grants; None where it lacks what a lease needs."""
    options = message.options
    server = options.get(Option.SERVER_ID, b"")
    seconds = _number(options, Option.LEASE_TIME)
    if message.address == ANY or message.address.is_multicast or len(server) != 4 or seconds is None:
        return None
    lifetime = max(seconds, MIN_LEASE_TIME)
    renewal, rebinding = _renewal_times(options, lifetime)
    domain_name = options.get(Option.DOMAIN_NAME, b"").rstrip(b".\0")
    search = pull_domains(options.get(Option.DOMAIN_SEARCH, b"")) or _domain(domain_name.split(b"."))
    mtu = _number(options, Option.INTERFACE_MTU, 2)
    return Lease(
        address=IPv4Interface(f"{message.address}/{_prefix_len(options.get(Option.SUBNET_MASK, b''))}"),
        server=IPv4Address(server),
        routers=_addresses(options.get(Option.ROUTERS, b"")),
        servers=_addresses(options.get(Option.DOMAIN_NAME_SERVERS, b"")),
        search=search,
        mtu=mtu if mtu is not None and mtu >= MIN_MTU else None,
        lifetime=lifetime,
        renewal=renewal,
        rebinding=rebinding,
    )


def pull_domains(data: bytes) -> tuple[str, ...]:
    """The names of a domain search option, compressed as RFC 1035 4.1.4 says; none of it where it is garbled."""
    domains: list[str] = []
    position = 0
    while position < len(data) and len(domains) < MAX_DOMAINS:
        labels, position = _pull_name(data, position)
        if position < 0:
            return ()
        domains += _domain(labels)
    return tuple(domains)


def _pull_name(data: bytes, position: int) -> tuple[list[bytes], int]:
    """The labels of a name, and the position behind it; a position below 0: garbled."""
    labels: list[bytes] = []
    behind, lowest = -1, position
    while position < len(data):
        length = data[position]
        if length == 0:
            return labels, position + 1 if behind < 0 else behind
        if length < 0x40:
            labels.append(data[position + 1 : position + 1 + length])
            position += 1 + length
            continue
        if length < 0xC0 or len(data) - position < 2:
            break
        target = (length & 0x3F) << 8 | data[position + 1]
        if behind < 0:
            behind = position + 2
        if target >= lowest:  # only backwards, so that it ends
            break
        position = lowest = target
    return [], -1


def _domain(labels: list[bytes]) -> tuple[str, ...]:
    """A domain name that may stand in resolv.conf, or nothing: a server's bytes must not become a line of their own."""
    name = b".".join(labels)
    return (name.decode(),) if name and len(name) <= 253 and all(map(_LABEL.fullmatch, labels)) else ()


def _pull_options(data: bytes, options: dict[int, bytes]) -> None:
    """Add to `options`; what comes in several pieces is one value (RFC 3396)."""
    for code, value in _options(data):
        options[code] = options.get(code, b"") + value


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data) and data[position] != Option.END:
        if data[position] == Option.PAD:
            position += 1
            continue
        if len(data) - position < 2 or data[position + 1] > len(data) - position - 2:
            return
        end = position + 2 + data[position + 1]
        yield data[position], data[position + 2 : end]
        position = end


def _option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def _number(options: dict[int, bytes], code: Option, size: int = 4) -> int | None:
    value = options.get(code, b"")
    return int.from_bytes(value, "big") if len(value) == size else None


def _addresses(value: bytes) -> tuple[IPv4Address, ...]:
    return tuple(IPv4Address(value[at : at + 4]) for at in range(0, len(value) // 4 * 4, 4))


def _prefix_len(mask: bytes) -> int:
    """Without a mask that makes sense the address stands alone, and all goes to the router."""
    bits = int.from_bytes(mask, "big")
    inverted = bits ^ 0xFFFFFFFF
    if len(mask) != 4 or bits == 0 or inverted & (inverted + 1):
        return 32
    return 32 - inverted.bit_length()


def _renewal_times(options: dict[int, bytes], lifetime: int) -> tuple[float, float]:
    """T1 and T2 (RFC 2131 4.4.5), the server's where they are in order."""
    renewal = _number(options, Option.RENEWAL_TIME) or lifetime * 0.5
    rebinding = _number(options, Option.REBINDING_TIME) or lifetime * 0.875
    if not 0 < renewal < rebinding < lifetime:
        return lifetime * 0.5, lifetime * 0.875
    return renewal, rebinding
