"""The names that the gateway answers itself: the network's zones, its hosts, and no-names (RFC 1035, 4343, 8020).

Zones are asked in their order. In a zone the records are, in theirs: the first whose name is equal or whose regexp
matches the labels before the zone gives the address, then the zone's default address. A name that exists has no other
types than those of its addresses: an empty answer, not NXDOMAIN, or a guest that asks for AAAA would give up on A.

A name that a zone does not know does not exist where the zone is authoritative; otherwise the next zone is asked and in
the end the upstreams, so that a static ``db.example.com`` does not hide the rest of ``example.com``. gvproxy, whose API
and configuration have no word for it, treats every zone as authoritative; its users rely on that for names that are
nobody else's and stumble over it for names of the public DNS. So a zone that does not say is authoritative

- below a domain that is set aside for private use (``containers.internal.``), where the public DNS has nothing to add
  and should not learn what is asked;
- without records and default address, as it can only mean: there is nothing here.

After the zones come the hosts, which name themselves by DHCP: ``HOST.NETWORK.internal.`` and back by PTR. An operator's
zone thus goes before what a guest calls itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address

import dns.rdatatype
from dns.rdatatype import RdataType

from proto.messages import Network, Zone, ZoneRecord
from proto.patterns import Pattern, compile_pattern

PRIVATE_DOMAINS = ("alt", "home.arpa", "internal", "invalid", "local", "localhost", "onion", "test")
"""RFC 9476, 8375, 6761, 6762, 7686; `internal` by ICANN's resolution of 2024."""
ADDRESS_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a name."""

    exists: bool
    rdata: tuple[tuple[RdataType, str], ...] = ()
    """Of the asked type; empty: the name has none."""


NXDOMAIN = Answer(False)
NODATA = Answer(True)


class LocalNames:
    """Everything that the gateway answers without asking."""

    def __init__(self) -> None:
        self._given: tuple[Zone, ...] = ()
        self._zones: list[_Zone] = []

    def update(self, network: Network) -> None:
        """Zones or hosts changed. Hosts do so often, and zones are the ones that take time to compile."""
        if network.zones != self._given:
            self._given = network.zones
            self._zones = [_Zone(zone) for zone in network.zones]
        self._hosts = _Hosts(network)

    def lookup(self, name: str, kind: RdataType) -> Answer | None:
        """The answer for a name in lower case, without the last dot; None: the upstreams'."""
        unknown: Answer | None = None
        for zone in self._zones:
            prefix = zone.prefix(name)
            if prefix is None:
                continue
            found = zone.lookup(prefix, kind)
            if found is not None:
                return found
            if zone.is_authoritative:
                unknown = zone.absence(prefix)
                break
        host = self._hosts.lookup(name, kind)
        if host is not None and host.exists:
            return host
        return unknown or host or (NXDOMAIN if _is_address(name) else None)


class _Record:
    """A record, compiled. Raises ValueError where it cannot be used."""

    def __init__(self, record: ZoneRecord) -> None:
        self.address = record.ip
        self.type = dns.rdatatype.A if ip_address(record.ip).version == 4 else dns.rdatatype.AAAA
        self.name = fold(record.name)
        self._pattern: Pattern | None = compile_pattern(record.regexp) if record.regexp else None

    def matches(self, prefix: str) -> bool:
        """A record with a regexp and no name is none of the apex."""
        if self.name == prefix and (prefix or self._pattern is None):
            return True
        return self._pattern is not None and self._pattern.search(prefix) is not None


class _Zone:
    """A zone, compiled."""

    def __init__(self, zone: Zone) -> None:
        self.name = fold(zone.name)
        self._records = _compile(zone.name, zone.records)
        self._default = _compile(zone.name, (ZoneRecord(zone.default_ip, regexp=".*"),) if zone.default_ip else ())
        is_empty = not zone.records and not zone.default_ip
        is_private = any(_is_below(self.name, domain) for domain in PRIVATE_DOMAINS)
        self.is_authoritative = is_empty or is_private if zone.authoritative is None else zone.authoritative

    def prefix(self, name: str) -> str | None:
        """The labels of `name` before the zone, empty at its apex; None outside the zone."""
        if not self.name or name == self.name:
            return name if not self.name else ""
        return name[: -len(self.name) - 1] if _is_below(name, self.name) else None

    def lookup(self, prefix: str, kind: RdataType) -> Answer | None:
        """None where the zone does not know the name."""
        return _first_matching(self._records, prefix, kind) or _first_matching(self._default, prefix, kind)

    def absence(self, prefix: str) -> Answer:
        """Of a name that it does not know: its apex, and what lies between it and a record, exist (RFC 8020)."""
        is_parent = any(record.name.endswith("." + prefix) for record in self._records)
        return NODATA if not prefix or is_parent else NXDOMAIN


def _compile(zone: str, records: Iterable[ZoneRecord]) -> list[_Record]:
    compiled = []
    for record in records:
        try:
            compiled.append(_Record(record))
        except ValueError as error:
            log.warning("zone %s: record %s%s is left out: %s", zone, record.name, record.regexp, error)
    return compiled


def _first_matching(records: Iterable[_Record], prefix: str, kind: RdataType) -> Answer | None:
    """The first record of each asked type; None where none of any type matches."""
    wanted = {known for known in ADDRESS_TYPES if kind in (known, dns.rdatatype.ANY)}
    exists = False
    found: list[tuple[RdataType, str]] = []
    for record in records:
        if exists and record.type not in wanted:
            continue  # what it would tell is known
        if record.matches(prefix):
            exists = True
            if record.type in wanted:
                wanted.discard(record.type)
                found.append((record.type, record.address))
    return Answer(True, tuple(found)) if exists else None


class _Hosts:
    """The hosts of the network, by name and by address."""

    def __init__(self, network: Network) -> None:
        self._domain = f"{fold(network.name)}.internal"
        self._subnet = IPv4Network(network.subnet, strict=False)
        self._by_name: Mapping[str, str] = network.hosts
        self._by_address = {address: name for name, address in network.hosts.items()}

    def lookup(self, name: str, kind: RdataType) -> Answer | None:
        if _is_below(name, self._domain):
            host = name[: -len(self._domain) - 1]
            address = self._by_name.get(host)
            if address is None:
                return NODATA if not host else NXDOMAIN
            return _rdata(dns.rdatatype.A, address, kind)
        address = _reversed(name)
        if address is None or IPv4Address(address) not in self._subnet:
            return None
        known = self._by_address.get(address)
        if known is None:
            return NXDOMAIN
        return _rdata(dns.rdatatype.PTR, f"{known}.{self._domain}.", kind)


def fold(name: str) -> str:
    """A name as it is compared: lower case, without the last dot."""
    return name.lower().rstrip(".")


def _rdata(kind: RdataType, text: str, asked: RdataType) -> Answer:
    return Answer(True, ((kind, text),)) if asked in (kind, dns.rdatatype.ANY) else NODATA


def _is_below(name: str, domain: str) -> bool:
    return name == domain or name.endswith("." + domain)


def _reversed(name: str) -> str | None:
    """The IPv4 address of a name for its way back (RFC 1035 3.5)."""
    labels, found, _ = name.partition(".in-addr.arpa")
    address = ".".join(reversed(labels.split(".")))
    return address if found and _is_address(address) and name == f"{labels}.in-addr.arpa" else None


def _is_address(name: str) -> bool:
    """Whether a name is an IPv4 address, which is never one of the DNS: there is no top-level domain of digits."""
    try:
        IPv4Address(name)
    except ValueError:
        return False
    return True
