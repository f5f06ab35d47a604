"""The DNS server of the gateway (RFC 1035, 2308, 6891, 7766), without its upstreams.

A query is answered here when its name lies in one of the network's zones, refused when it is none this server takes,
and otherwise passed to the host's upstreams as it is, whatever its type (`worker/services/dns_upstream.py`)::

    receive(wire, over_tcp) -> Answered(wire) or Forwarded(query) or None for what must not be answered

Zones are looked at in their order, the first that holds the name decides: an exact name before a regexp before the
zone's default address. A name that exists without the asked type is an empty answer, not NXDOMAIN, or a guest that asks
for AAAA would give up on A. Zone answers have TTL 0, as zones change while guests run. Left out: transfers, updates,
DNSSEC of the zones (upstream signatures pass through), caching.
"""

from __future__ import annotations

import logging
import re
import struct
from dataclasses import dataclass
from ipaddress import ip_address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from proto.messages import Zone

HEADER_LEN = 12
MAX_QUERY_SIZE = 4096
"""Bytes; a query is one question, an OPT record, perhaps a TSIG."""
MIN_UDP_SIZE = 512
MAX_UDP_SIZE = 4096
"""Bytes; what a client may ask for by EDNS."""
MAX_TCP_SIZE = 65535
MAX_REGEXP_NAME = 128
"""Characters a regexp is tried on: a guest chooses the name, and Python's `re` may take exponential time."""
MAX_ADDITIONAL = 2
FLAG_QR = 0x8000
FLAG_TC = 0x0200

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Query:
    """A guest's query, to be passed on."""

    wire: bytes
    question: bytes
    """The question section as sent."""
    max_size: int
    """Bytes that the answer may have."""
    edns: bool


@dataclass(frozen=True, slots=True)
class Answered:
    wire: bytes


@dataclass(frozen=True, slots=True)
class Forwarded:
    query: Query


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    pattern: re.Pattern[str] | None
    address: str
    type: dns.rdatatype.RdataType


class _Zone:
    """A zone's names, compiled."""

    def __init__(self, zone: Zone) -> None:
        self.name = _fold(zone.name)
        self._records: list[_Record] = []
        for record in zone.records:
            try:
                pattern = re.compile(record.regexp, re.IGNORECASE) if record.regexp else None
                self._records.append(_Record(_fold(record.name), pattern, record.ip, _address_type(record.ip)))
            except (re.error, ValueError) as error:
                log.warning("zone %s: record %s%s is left out: %s", zone.name, record.name, record.regexp, error)
        self._default = zone.default_ip

    def prefix(self, name: str) -> str | None:
        """The labels of `name` before the zone, empty at its apex; None outside the zone."""
        if not self.name or name == self.name:
            return name if not self.name else ""
        return name[: -len(self.name) - 1] if name.endswith("." + self.name) else None

    def lookup(self, prefix: str) -> list[_Record] | None:
        """The records of a name, the one that counts first for each type; None where the name does not exist."""
        exact = [record for record in self._records if record.pattern is None and record.name == prefix]
        if exact:
            return exact
        if len(prefix) <= MAX_REGEXP_NAME:
            matched = [record for record in self._records if record.pattern and record.pattern.search(prefix)]
            if matched:
                return matched
        if self._default:
            return [_Record(prefix, None, self._default, _address_type(self._default))]
        # The apex, and the names between it and a record, exist without data (RFC 8020).
        is_parent = any(record.pattern is None and record.name.endswith("." + prefix) for record in self._records)
        return [] if not prefix or is_parent else None


class DnsServer:
    """Reads queries, answers for the zones, fits answers to what the client takes."""

    def __init__(self, zones: tuple[Zone, ...]) -> None:
        self._zones: list[_Zone] = []
        self.counters = dict.fromkeys(
            (
                "dns.queries_udp", "dns.queries_tcp", "dns.answered", "dns.forwarded", "dns.nxdomain", "dns.formerr",
                "dns.notimp", "dns.servfail", "dns.truncated", "dns.malformed",
            ),
            0,
        )  # fmt: skip
        self.update(zones)

    def update(self, zones: tuple[Zone, ...]) -> None:
        """The zones changed."""
        self._zones = [_Zone(zone) for zone in zones]

    def receive(self, wire: bytes, over_tcp: bool) -> Answered | Forwarded | None:
        """What to do with a client's message; None for what must not be answered (a response, half a header)."""
        self.counters["dns.queries_tcp" if over_tcp else "dns.queries_udp"] += 1
        if len(wire) < HEADER_LEN or wire[2] & 0x80:
            self.counters["dns.malformed"] += 1
            return None
        opcode = wire[2] >> 3 & 0x0F
        if opcode != dns.opcode.QUERY:
            self.counters["dns.notimp"] += 1
            return Answered(error(wire, dns.rcode.NOTIMP))
        query = self._parse(wire)
        if query is None:
            self.counters["dns.formerr"] += 1
            return Answered(error(wire, dns.rcode.FORMERR))
        client_size = query.payload if query.edns >= 0 else MIN_UDP_SIZE
        max_size = MAX_TCP_SIZE if over_tcp else min(max(client_size, MIN_UDP_SIZE), MAX_UDP_SIZE)
        response = self._answer(query)
        if response is None:
            self.counters["dns.forwarded"] += 1
            return Forwarded(Query(wire, _question(wire), max_size, query.edns >= 0))
        self.counters["dns.answered"] += 1
        return Answered(response.to_wire(max_size=MAX_TCP_SIZE))

    def fit(self, query: Query, answer: bytes | None) -> bytes:
        """An upstream's answer (None: there was none) as the client gets it: its own id, no larger than it takes."""
        if answer is None:
            self.counters["dns.servfail"] += 1
            return error(query.wire, dns.rcode.SERVFAIL, query.question)
        answer = query.wire[:2] + answer[2:]
        if len(answer) <= query.max_size:
            return answer
        self.counters["dns.truncated"] += 1
        flags = int.from_bytes(answer[2:4], "big") | FLAG_TC
        opt = _opt() if query.edns else b""
        counts = bytes((0, 1, 0, 0, 0, 0, 0, int(query.edns)))
        return answer[:2] + flags.to_bytes(2, "big") + counts + query.question + opt

    def _parse(self, wire: bytes) -> dns.message.Message | None:
        counts = [int.from_bytes(wire[at : at + 2], "big") for at in (4, 6, 8, 10)]
        if len(wire) > MAX_QUERY_SIZE or counts[0] != 1 or counts[1] or counts[2] or counts[3] > MAX_ADDITIONAL:
            return None
        try:
            query = dns.message.from_wire(wire, keyring=False, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return None
        return None if query.had_tsig else query  # there is no key to answer a signed query with

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        """The answer out of the zones; None where no zone holds the name."""
        question = query.question[0]
        if question.rdclass not in (dns.rdataclass.IN, dns.rdataclass.ANY):
            return None
        name = _fold(question.name.to_text())
        for zone in self._zones:
            prefix = zone.prefix(name)
            if prefix is not None:
                return self._zone_answer(query, zone.lookup(prefix))
        return None

    def _zone_answer(self, query: dns.message.Message, records: list[_Record] | None) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True, our_payload=MAX_UDP_SIZE)
        response.flags |= dns.flags.AA
        if records is None:
            self.counters["dns.nxdomain"] += 1
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response
        question = query.question[0]
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            address = next((record.address for record in records if record.type == kind), None)
            if address is not None and question.rdtype in (kind, dns.rdatatype.ANY):
                response.answer.append(dns.rrset.from_text(question.name, 0, dns.rdataclass.IN, kind, address))
        return response


def error(wire: bytes, rcode: int, question: bytes = b"") -> bytes:
    """A message that says only what went wrong: id, opcode and RD of the query, and its question where known."""
    flags = FLAG_QR | int.from_bytes(wire[2:4], "big") & 0x7900 | 0x0080 | rcode
    return wire[:2] + flags.to_bytes(2, "big") + bytes((0, int(bool(question)), 0, 0, 0, 0, 0, 0)) + question


def _question(wire: bytes) -> bytes:
    """The question section of a message that was parsed: labels, type, class."""
    _, used = dns.name.from_wire(wire, HEADER_LEN)
    return wire[HEADER_LEN : HEADER_LEN + used + 4]


def _opt() -> bytes:
    """An OPT record without options (RFC 6891 6.1.2)."""
    return struct.pack("!BHHIH", 0, dns.rdatatype.OPT, MAX_UDP_SIZE, 0, 0)


def _fold(name: str) -> str:
    return name.lower().rstrip(".")


def _address_type(address: str) -> dns.rdatatype.RdataType:
    """Raises ValueError where `address` is none."""
    return dns.rdatatype.A if ip_address(address).version == 4 else dns.rdatatype.AAAA
