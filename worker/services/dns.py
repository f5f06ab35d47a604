"""The DNS server of the gateway (RFC 1035, 2308, 6891, 7766), without its upstreams.

A query is answered here when the gateway knows its name (`worker/services/dns_zones.py`), refused when it is none this
server takes, and otherwise asked of the upstreams, whatever its type (`worker/services/dns_resolver.py`)::

    receive(wire, over_tcp) -> Answered(wire) or Forwarded(query) or None for what must not be answered

Zone answers have TTL 0, as zones change while guests run, and are not marked authoritative (AA): to the guest this is
its resolver. EDNS belongs to each hop (RFC 6891 6.2.1): of a guest's OPT record only the size and the DO bit are taken
over; its options (cookies, padding, a client subnet) are not passed on. Left out: transfers, updates, DNSSEC of the
zones (upstream signatures pass through).
"""

from __future__ import annotations

import operator
import struct
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from proto.messages import Network
from worker.services.dns_zones import Answer, LocalNames

HEADER_LEN = 12
MAX_QUERY_SIZE = 4096
"""Bytes; a query is one question, an OPT record, perhaps a TSIG."""
MIN_UDP_SIZE = 512
MAX_UDP_SIZE = 4096
"""Bytes; what a client may ask for by EDNS, and what upstreams are offered."""
MAX_TCP_SIZE = 65535
MAX_COUNTS = (1, 1, 1, 2)
"""Of questions, answers, authority and additional records in a query."""
FLAG_QR = 0x8000
FLAG_TC = 0x0200
FLAG_RA = 0x0080
KEPT_FLAGS = 0x0130
"""RD, AD and CD of a query go on to the upstreams."""
ECHOED_FLAGS = 0x7910
"""Opcode, RD and CD of a query come back."""


@dataclass(frozen=True, slots=True)
class Query:
    """A guest's query, to be passed on."""

    ident: bytes
    name: str
    """In lower case, without the last dot."""
    question: bytes
    """The question section as sent: its case is the client's, and comes back to it."""
    flags: int
    opt: bytes
    """The OPT record that goes on; empty where the client sent none."""
    max_size: int
    """Bytes that the answer may have."""

    @property
    def wire(self) -> bytes:
        """What an upstream is asked."""
        counts = bytes((0, 1, 0, 0, 0, 0, 0, int(bool(self.opt))))
        return self.ident + self.flags.to_bytes(2, "big") + counts + self.question + self.opt

    @property
    def key(self) -> bytes:
        """Equal for queries that have the same answer."""
        return self.flags.to_bytes(2, "big") + self.opt + self.question.lower()


@dataclass(frozen=True, slots=True)
class Answered:
    wire: bytes


@dataclass(frozen=True, slots=True)
class Forwarded:
    query: Query


class DnsServer:
    """Reads queries, answers those for local names, fits upstreams' answers to what the client takes."""

    def __init__(self, network: Network) -> None:
        self.counters = dict.fromkeys(
            (
                "dns.queries_udp", "dns.queries_tcp", "dns.answered", "dns.forwarded", "dns.nxdomain", "dns.formerr",
                "dns.notimp", "dns.servfail", "dns.truncated", "dns.malformed",
            ),
            0,
        )  # fmt: skip
        self._names = LocalNames()
        self.update(network)

    def update(self, network: Network) -> None:
        """Zones or hosts changed."""
        self._names.update(network)

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
        message = self._parse(wire)
        if message is None:
            self.counters["dns.formerr"] += 1
            return Answered(error(wire, dns.rcode.FORMERR))
        if message.edns > 0:
            response = dns.message.make_response(message, our_payload=MAX_UDP_SIZE)
            response.set_rcode(dns.rcode.BADVERS)
            return Answered(response.to_wire())
        answer = self._look_up(message)
        if answer is not None:
            self.counters["dns.answered"] += 1
            return Answered(self._respond(message, answer).to_wire(max_size=MAX_TCP_SIZE))
        self.counters["dns.forwarded"] += 1
        return Forwarded(_query(wire, message, over_tcp))

    def fit(self, query: Query, answer: bytes | None) -> bytes:
        """An upstream's answer (None: there was none) as the client gets it: its own id, no larger than it takes."""
        if answer is None:
            self.counters["dns.servfail"] += 1
            return error(query.wire, dns.rcode.SERVFAIL, query.question)
        questions = int.from_bytes(answer[4:6], "big")
        if not questions:  # a failure may come without
            return error(query.wire, answer[3] & 0x0F, query.question)
        body_at = HEADER_LEN + len(query.question)
        answer = query.ident + answer[2:HEADER_LEN] + query.question + answer[body_at:]
        if len(answer) <= query.max_size:
            return answer
        self.counters["dns.truncated"] += 1
        flags = int.from_bytes(answer[2:4], "big") | FLAG_TC
        counts = bytes((0, 1, 0, 0, 0, 0, 0, int(bool(query.opt))))
        return query.ident + flags.to_bytes(2, "big") + counts + query.question + query.opt

    def _parse(self, wire: bytes) -> dns.message.Message | None:
        counts = [int.from_bytes(wire[at : at + 2], "big") for at in (4, 6, 8, 10)]
        if len(wire) > MAX_QUERY_SIZE or counts[0] != 1 or any(map(operator.gt, counts, MAX_COUNTS)):
            return None
        try:
            query = dns.message.from_wire(wire, keyring=False, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return None
        return None if query.had_tsig else query  # there is no key to answer a signed query with

    def _look_up(self, query: dns.message.Message) -> Answer | None:
        question = query.question[0]
        if question.rdclass not in (dns.rdataclass.IN, dns.rdataclass.ANY):
            return None
        return self._names.lookup(name_text(question.name), question.rdtype)

    def _respond(self, query: dns.message.Message, answer: Answer) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True, our_payload=MAX_UDP_SIZE)
        response.flags |= query.flags & dns.flags.CD
        if not answer.exists:
            self.counters["dns.nxdomain"] += 1
            response.set_rcode(dns.rcode.NXDOMAIN)
        name = query.question[0].name
        for kind, text in answer.rdata:
            response.answer.append(dns.rrset.from_text(name, 0, dns.rdataclass.IN, kind, text))
        return response


def _query(wire: bytes, message: dns.message.Message, over_tcp: bool) -> Query:
    has_edns = message.edns >= 0
    client_size = message.payload if has_edns else MIN_UDP_SIZE
    return Query(
        ident=wire[:2],
        name=name_text(message.question[0].name),
        question=_question(wire),
        flags=int.from_bytes(wire[2:4], "big") & KEPT_FLAGS,
        opt=_opt(bool(message.ednsflags & dns.flags.DO)) if has_edns else b"",
        max_size=MAX_TCP_SIZE if over_tcp else min(max(client_size, MIN_UDP_SIZE), MAX_UDP_SIZE),
    )


def name_text(name: dns.name.Name) -> str:
    """A name as the zones and domains are compared with: lower case, without the last dot.

    A dot inside a label is escaped (RFC 4343 2.1), or ``a.b`` as one label would pass for two.
    """
    labels = (label.replace(b".", rb"\046") for label in name.labels if label)
    return b".".join(labels).lower().decode("latin-1")


def error(wire: bytes, rcode: int, question: bytes = b"") -> bytes:
    """A message that says only what went wrong: id, opcode, RD and CD of the query, and its question where known."""
    flags = FLAG_QR | int.from_bytes(wire[2:4], "big") & ECHOED_FLAGS | FLAG_RA | rcode
    return wire[:2] + flags.to_bytes(2, "big") + bytes((0, int(bool(question)), 0, 0, 0, 0, 0, 0)) + question


def _question(wire: bytes) -> bytes:
    """The question section of a message that was parsed: labels, type, class."""
    _, used = dns.name.from_wire(wire, HEADER_LEN)
    return wire[HEADER_LEN : HEADER_LEN + used + 4]


def _opt(wants_dnssec: bool) -> bytes:
    """An OPT record without options (RFC 6891 6.1.2; DO: RFC 3225)."""
    return struct.pack("!BHHIH", 0, dns.rdatatype.OPT, MAX_UDP_SIZE, int(wants_dnssec) << 15, 0)
