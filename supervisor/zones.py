"""The DNS zones of one network: its own, those configured, and those added over the API, which are kept in the state.

What is refused is refused in gvproxy's words, which are Go's: its clients match on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from proto.codec import encode
from proto.errors import CodecError, RequestFailed
from proto.messages import Zone, ZoneRecord, Zones
from proto.patterns import compile_pattern

MAX_ZONES = 1000
MAX_RECORDS_PER_ZONE = 1000
MAX_SIZE = 128 << 10
"""Bytes of all zones in a message; a worker gets them with its descriptors, by a socket that takes little more."""
_GO_WORDS = {
    "bad repetition operator": "invalid nested repetition operator",
    "invalid named capture group": "invalid named capture",
    "invalid perl operator": "invalid or unsupported Perl syntax",
    "invalid repetition size": "invalid repeat count",
    "missing )": "missing closing )",
    "missing ]": "missing closing ]",
    "trailing \\": "trailing backslash at end of expression",
    "no argument for repetition operator": "missing argument to repetition operator",
}
"""RE2's words for what is wrong with a regexp, and those of Go's regexp/syntax where they differ."""


class NetworkZones:
    """Zones in the order they are asked."""

    def __init__(self, own: Iterable[Zone], added: Iterable[Zone]) -> None:
        self._own = {zone.name: zone for zone in own}
        self._added = {zone.name: zone for zone in added}
        self.all = self._merge(self._added)

    def add(self, zone: Zone) -> Zone:
        """Add a zone, or put its records before those of the zone of its name; what has been added to it in all.

        The default address is replaced, even by an empty one, as gvproxy does. An old record that a new one hides is
        dropped: clients say the same at each of their starts, and the state outlives them. Raises RequestFailed
        ``bad-request``.
        """
        checked = check_zone(zone)
        old = self._added.get(zone.name, Zone(zone.name))
        hidden = {_what(record) for record in checked.records}
        kept = tuple(record for record in old.records if _what(record) not in hidden)
        added = dataclasses.replace(checked, records=checked.records + kept)
        if added.authoritative is None:
            added = dataclasses.replace(added, authoritative=old.authoritative)
        candidate = self._added | {added.name: added}
        merged = self._merge(candidate)
        _check_size(merged)
        self._added = candidate
        self.all = merged
        return added

    def remove(self, name: str) -> None:
        """Take back all that was added to a zone. Raises RequestFailed ``not-found``."""
        if name not in self._added:
            known = ", ".join(map(repr, self._added)) or "none"
            raise RequestFailed.because(
                "not-found", f"zone {name!r} was not added over the API; those are: {known[:500]}"
            )
        del self._added[name]
        self.all = self._merge(self._added)

    def _merge(self, added: dict[str, Zone]) -> tuple[Zone, ...]:
        merged = self._own | added
        for name in self._own.keys() & added.keys():
            own = self._own[name]
            records = added[name].records + own.records
            authoritative = own.authoritative if added[name].authoritative is None else added[name].authoritative
            merged[name] = dataclasses.replace(added[name], records=records, authoritative=authoritative)
        return tuple(merged.values())


def check_zone(zone: Zone) -> Zone:
    """The zone with its addresses as they are usually written. Raises RequestFailed ``bad-request``."""
    return dataclasses.replace(
        zone, records=tuple(map(_check_record, zone.records)), default_ip=_check_address(zone.default_ip)
    )


def _what(record: ZoneRecord) -> tuple[str, str, bool]:
    return record.name.lower(), record.regexp, ":" in record.ip


def _check_record(record: ZoneRecord) -> ZoneRecord:
    try:
        compile_pattern(record.regexp)
    except ValueError as error:
        what, _, part = str(error).partition(": ")
        reason = f"error parsing regexp: {_GO_WORDS.get(what, what)}: `{part}`"
        raise RequestFailed.because("bad-request", reason) from error
    return dataclasses.replace(record, ip=_check_address(record.ip))


def _check_address(text: str) -> str:
    if not text:
        return ""
    try:
        address = ip_address(text)
    except ValueError as error:
        raise RequestFailed.because("bad-request", f"invalid IP address: {text}") from error
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise RequestFailed.because("bad-request", f"invalid IP address: {text}")
        address = address.ipv4_mapped or address
    return str(address)


def _check_size(zones: tuple[Zone, ...]) -> None:
    if len(zones) > MAX_ZONES or max(len(zone.records) for zone in zones) > MAX_RECORDS_PER_ZONE:
        raise RequestFailed.because(
            "bad-request", f"more than {MAX_ZONES} zones or {MAX_RECORDS_PER_ZONE} records in a zone"
        )
    try:
        size = len(encode(Zones(zones)))
    except CodecError:
        size = MAX_SIZE + 1
    if size > MAX_SIZE:
        raise RequestFailed.because("bad-request", f"the network's zones take more than {MAX_SIZE} bytes")
