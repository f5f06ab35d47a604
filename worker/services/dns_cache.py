"""The answers of one VM's upstreams, kept as long as they say (RFC 1035 3.2.1, 2181 8; negative ones: RFC 2308).

An answer is kept as it came; what it says of time is read once and counted down in each copy that is given out. One
whose time is over is kept for a while longer, for the day when no upstream answers (RFC 8767). Both entries and bytes
are bounded, and what was not asked for longest goes first: the guest decides what is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from dns.rcode import NOERROR, NXDOMAIN
from dns.rdatatype import ANY, OPT, SOA

from proto.messages import Upstream

MAX_ENTRIES = 1024
MAX_BYTES = 1 << 20
MAX_ANSWER_SIZE = 16384
MAX_TTL = 86_400
"""s; RFC 8767 4 would have up to a week."""
MAX_NEGATIVE_TTL = 10_800
"""s; RFC 2308 5 recommends one to three hours."""
MAX_STALE = 86_400
"""s that an answer is kept after its time; RFC 8767 5 says one to three days."""
STALE_TTL = 30
"""s that a stale answer is good for (RFC 8767 5)."""
HEADER_LEN = 12
TYPE_CLASS_LEN = 4
FLAG_TC = 0x02
_OWN_OVERHEAD = 400
"""Bytes an entry takes besides its key and its answer."""


@dataclass(slots=True)
class Entry:
    """An answer and how long it is good for. Times are the caller's, in seconds."""

    wire: bytes
    ttl_offsets: tuple[int, ...]
    stored_at: float
    ttl: int
    upstreams: tuple[Upstream, ...]
    """Who said so."""
    failed_at: float = float("-inf")
    """When the upstreams last failed to say it again."""

    def is_fresh(self, now: float) -> bool:
        """Whether it may be given out without asking."""
        return now < self.stored_at + self.ttl

    def aged(self, now: float) -> bytes:
        """The answer as of `now`, each record's time less its age."""
        age = int(now - self.stored_at)
        return self._with_ttls(lambda ttl: max(0, min(ttl, MAX_TTL) - age))

    def stale(self) -> bytes:
        """The answer after its time."""
        return self._with_ttls(lambda _: STALE_TTL)

    def _with_ttls(self, change: Callable[[int], int]) -> bytes:
        copy = bytearray(self.wire)
        for at in self.ttl_offsets:
            copy[at : at + 4] = change(_ttl(self.wire, at)).to_bytes(4, "big")
        return bytes(copy)


class Cache:
    """Answers by what was asked."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._size = 0
        self.counters = dict.fromkeys(("dns.cache_entries", "dns.cache_bytes", "dns.cache_evicted"), 0)

    def get(self, key: bytes, now: float) -> Entry | None:
        """Fresh or stale."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.stored_at + entry.ttl + MAX_STALE:
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, wire: bytes, upstreams: tuple[Upstream, ...], now: float) -> None:
        """Keep an answer, where it may be kept."""
        kept = _lifetime(wire) if len(wire) <= MAX_ANSWER_SIZE else None
        if kept is None:
            return
        self._remove(key)
        self._entries[key] = Entry(wire, kept.ttl_offsets, now, kept.ttl, upstreams)
        self._size += _size(key, wire)
        while len(self._entries) > MAX_ENTRIES or self._size > MAX_BYTES:
            self._remove(next(iter(self._entries)))
            self.counters["dns.cache_evicted"] += 1
        self._count()

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= _size(key, entry.wire)
            self._count()

    def _count(self) -> None:
        self.counters["dns.cache_entries"] = len(self._entries)
        self.counters["dns.cache_bytes"] = self._size


@dataclass(frozen=True, slots=True)
class _Lifetime:
    ttl: int
    ttl_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Record:
    section: int
    """0 answer, 1 authority, 2 additional."""
    type: int
    ttl_offset: int
    end: int


def _lifetime(wire: bytes) -> _Lifetime | None:
    """How long an answer may be kept; None: not at all (truncated, a failure, garbled, or its TTL is 0)."""
    rcode = wire[3] & 0x0F
    if rcode not in (NOERROR, NXDOMAIN) or wire[2] & FLAG_TC:
        return None
    try:
        asked, records = _read(wire)
    except (IndexError, ValueError):
        return None
    records = [record for record in records if record.type != OPT]
    times = [_ttl(wire, record.ttl_offset) for record in records]
    answered = any(record.section == 0 and asked in (record.type, ANY) for record in records)
    if rcode == NXDOMAIN or not answered:
        soa = next((record for record in records if record.section == 1 and record.type == SOA), None)
        if soa is None:
            return None  # RFC 2308 5: not to be kept; it may also be a referral, or half of an answer
        minimum = int.from_bytes(wire[soa.end - 4 : soa.end], "big")
        times += [minimum, MAX_NEGATIVE_TTL]
    ttl = min(*times, MAX_TTL)
    return _Lifetime(ttl, tuple(record.ttl_offset for record in records)) if ttl > 0 else None


def _read(wire: bytes) -> tuple[int, list[_Record]]:
    """The asked type, and where the records are. Raises ValueError or IndexError where they are not."""
    counts = [int.from_bytes(wire[at : at + 2], "big") for at in (4, 6, 8, 10)]
    if counts[0] != 1:
        raise ValueError("not one question")
    at = _skip_name(wire, HEADER_LEN)
    asked = int.from_bytes(wire[at : at + 2], "big")
    at += TYPE_CLASS_LEN
    records = []
    for section, count in enumerate(counts[1:]):
        for _ in range(count):
            at = _skip_name(wire, at)
            ttl_at = at + TYPE_CLASS_LEN
            end = ttl_at + 6 + int.from_bytes(wire[ttl_at + 4 : ttl_at + 6], "big")
            if end > len(wire):
                raise ValueError("cut short")
            records.append(_Record(section, int.from_bytes(wire[at : at + 2], "big"), ttl_at, end))
            at = end
    return asked, records


def _skip_name(wire: bytes, at: int) -> int:
    """Where a name ends. Raises as `_read`."""
    while (length := wire[at]) != 0:
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise ValueError("no label")
        at += 1 + length
    return at + 1


def _ttl(wire: bytes, at: int) -> int:
    """RFC 2181 8: with the highest bit set it is 0."""
    ttl = int.from_bytes(wire[at : at + 4], "big")
    return ttl if ttl < 1 << 31 else 0


def _size(key: bytes, wire: bytes) -> int:
    return len(key) + len(wire) + _OWN_OVERHEAD
