"""ICMP (RFC 792, RFC 1122 3.2.2): echo for the gateway, echo through the host, and errors back to the guest.

An echo request to the gateway is answered here. One to anywhere else leaves through an unprivileged ping socket of the
host (`worker/services/ping.py`), which has an id of its own, so the id and the address are rewritten both ways. A reply
is never invented: silence, or an error with its reason, is what the guest gets when the world answers so.
"""

from __future__ import annotations

from dataclasses import dataclass

import dpkt
from dpkt import icmp

from worker.addr import pack_ipv4, pack_mac
from worker.services.frames import Packet, push_ipv4

ECHO_HEADER_LEN = 8
QUOTED_LEN = 8
"""Bytes of the payload in an error (RFC 792)."""

ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED = 0, 3, 8, 11
NET_UNREACHABLE, HOST_UNREACHABLE, PROHIBITED = 0, 1, 13
"""Codes of UNREACHABLE; 13 is RFC 1812's 'communication administratively prohibited'."""
_ERROR_COUNTERS = {UNREACHABLE: "icmp.unreachable", TIME_EXCEEDED: "icmp.time_exceeded"}


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request of the guest."""

    packet: Packet
    ident: int
    seq: int
    data: bytes


class IcmpResponder:
    """Makes the ICMP frames of the gateway."""

    def __init__(self, gateway_mac: str, gateway_ip: str, mtu: int) -> None:
        self._mac = pack_mac(gateway_mac)
        self._gateway = pack_ipv4(gateway_ip)
        self._mtu = mtu
        self._ip_ident = 0
        counters = ("icmp.echo_gateway", "icmp.echo_reply", "icmp.ignored", "icmp.malformed", "icmp.other_errors")
        self.counters = dict.fromkeys((*counters, *_ERROR_COUNTERS.values()), 0)

    def receive(self, packet: Packet) -> list[bytes]:
        """Frames that answer a message to the gateway: an echo's reply, or none."""
        if packet.dst != self._gateway or packet.payload[:1] != bytes([ECHO_REQUEST]):
            self.counters["icmp.ignored"] += 1
            return []
        echo = self.pull_echo(packet)
        if echo is None:
            return []
        self.counters["icmp.echo_gateway"] += 1
        return self.echo_reply(echo.packet, echo.ident, echo.seq, echo.data)

    def pull_echo(self, packet: Packet) -> Echo | None:
        """The echo request in a packet; None (and counted) where it is none."""
        payload = packet.payload
        is_echo = packet.proto == dpkt.ip.IP_PROTO_ICMP and len(payload) >= ECHO_HEADER_LEN
        if not is_echo or payload[0] != ECHO_REQUEST or payload[1] != 0:
            self.counters["icmp.malformed"] += 1
            return None
        ident, seq = int.from_bytes(payload[4:6], "big"), int.from_bytes(payload[6:8], "big")
        return Echo(packet, ident, seq, payload[8:])

    def echo_reply(self, to: Packet, ident: int, seq: int, data: bytes) -> list[bytes]:
        """The reply to a guest's request, from the address it asked."""
        self.counters["icmp.echo_reply"] += 1
        message = icmp.ICMP(type=ECHO_REPLY, data=icmp.ICMP.Echo(id=ident, seq=seq, data=data))
        return self._frames(to.dst, to, bytes(message))

    def error(self, about: Packet, kind: int, code: int, info: int = 0, src: bytes = b"") -> list[bytes]:
        """An error about a guest's packet, from `src` (default: the gateway); `info` is the second header word."""
        self.counters[_ERROR_COUNTERS.get(kind, "icmp.other_errors")] += 1
        quoted = info.to_bytes(4, "big") + about.header + about.payload[:QUOTED_LEN]
        return self._frames(src or self._gateway, about, bytes(icmp.ICMP(type=kind, code=code, data=quoted)))

    def _frames(self, src: bytes, to: Packet, message: bytes) -> list[bytes]:
        self._ip_ident += 1
        return push_ipv4(self._mac, to.src_mac, src, to.src, message, self._ip_ident, self._mtu)
