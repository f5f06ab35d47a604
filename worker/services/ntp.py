"""NTP (RFC 5905, SNTP server: RFC 4330 section 6): the host's clock for the guest.

A guest that was paused with its host wakes with a wrong clock; the gateway, which DHCP option 42 names, tells it the
host's. Whether and how well the host's own clock is synchronised is not known here, so the answer claims little:
stratum 10 (what chrony and ntpd use for an undisciplined local clock), the local-clock reference id 127.127.1.1, a
root dispersion of 10 ms. Clients that compare several servers then prefer any real one.
"""

from __future__ import annotations

import struct

_PACKET = struct.Struct("!BBbbII4sQQQQ")
PACKET_LEN = 48
MODE_CLIENT = 3
MODE_SERVER = 4
STRATUM = 10
PRECISION = -20
"""Log2 seconds: about a microsecond."""
ROOT_DISPERSION = 655
"""Seconds * 2**16: 10 ms."""
REFERENCE_ID = b"\x7f\x7f\x01\x01"
_UNIX_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970 (RFC 5905 section 6)."""


class NtpServer:
    """Answers client requests."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(("ntp.requests", "ntp.ignored"), 0)

    def receive(self, payload: bytes, now: float) -> bytes | None:
        """The answer to a client's packet; `now` is Unix time. Extensions and authenticators are not looked at."""
        if len(payload) < PACKET_LEN:
            self.counters["ntp.ignored"] += 1
            return None
        first, _, poll, _, _, _, _, _, _, _, transmitted = _PACKET.unpack_from(payload)
        version, mode = first >> 3 & 7, first & 7
        if mode != MODE_CLIENT or not 1 <= version <= 4:
            self.counters["ntp.ignored"] += 1
            return None
        self.counters["ntp.requests"] += 1
        stamp = timestamp(now)
        return _PACKET.pack(
            version << 3 | MODE_SERVER, STRATUM, poll, PRECISION, 0, ROOT_DISPERSION, REFERENCE_ID,
            stamp, transmitted, stamp, stamp,
        )  # fmt: skip


def timestamp(unix_time: float) -> int:
    """64-bit NTP time: seconds since 1900, modulo an era, and a 32-bit fraction."""
    return int((unix_time + _UNIX_EPOCH) * (1 << 32)) & 0xFFFF_FFFF_FFFF_FFFF
