"""The little of Ethernet, IPv4 and UDP that the services need (IEEE 802.3, RFC 791, RFC 768).

The engine has checked lengths and checksums of what it hands up and has reassembled fragments, so a frame may be
longer than the MTU. Lengths are checked here once more all the same: nothing in this folder trusts a guest's bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import dpkt

BROADCAST_MAC = b"\xff" * 6
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERNET_HEADER_LEN = 14
IPV4_HEADER_LEN = 20
UDP_HEADER_LEN = 8
DEFAULT_TTL = 64

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet and who sent it."""

    src_mac: bytes
    src: bytes
    dst: bytes
    proto: int
    ttl: int
    header: bytes
    """With its options."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram and who sent it."""

    src_mac: bytes
    src: bytes
    sport: int
    dst: bytes
    dport: int
    payload: bytes


def ethertype(frame: bytes) -> int:
    """0 for a frame without one."""
    return int.from_bytes(frame[12:14], "big") if len(frame) >= ETHERNET_HEADER_LEN else 0


def pull_ipv4(frame: bytes) -> Packet | None:
    """The packet in a frame; None where there is no whole one."""
    if ethertype(frame) != ETHERTYPE_IPV4 or len(frame) - ETHERNET_HEADER_LEN < IPV4_HEADER_LEN:
        return None
    version_ihl, _, total_len, _, _, ttl, proto, _, src, dst = _IPV4.unpack_from(frame, ETHERNET_HEADER_LEN)
    header_len = (version_ihl & 0x0F) * 4
    if version_ihl >> 4 != 4 or not IPV4_HEADER_LEN <= header_len <= total_len:
        return None
    if total_len > len(frame) - ETHERNET_HEADER_LEN:
        return None
    packet = frame[ETHERNET_HEADER_LEN : ETHERNET_HEADER_LEN + total_len]
    return Packet(frame[6:12], src, dst, proto, ttl, packet[:header_len], packet[header_len:])


def pull_udp(packet: Packet) -> Datagram | None:
    """The datagram in a packet; None where there is no whole one."""
    if packet.proto != dpkt.ip.IP_PROTO_UDP or len(packet.payload) < UDP_HEADER_LEN:
        return None
    sport, dport, length, _ = _UDP.unpack_from(packet.payload)
    if not UDP_HEADER_LEN <= length <= len(packet.payload):
        return None
    payload = packet.payload[UDP_HEADER_LEN:length]
    return Datagram(packet.src_mac, packet.src, sport, packet.dst, dport, payload)


def push_ethernet(dst_mac: bytes, src_mac: bytes, ethertype: int, payload: bytes) -> bytes:
    """A frame. Not by dpkt, which parses the payload again and loses what it does not know."""
    return dst_mac + src_mac + ethertype.to_bytes(2, "big") + payload


def push_ipv4(src_mac: bytes, dst_mac: bytes, src: bytes, dst: bytes, icmp: bytes, ident: int, mtu: int) -> list[bytes]:
    """An ICMP message as frames, fragmented where it is larger than the MTU (RFC 791 3.2)."""
    whole = mtu - IPV4_HEADER_LEN
    room = whole if len(icmp) <= whole else whole & ~7
    pieces = [icmp[at : at + room] for at in range(0, len(icmp), room)]
    frames = []
    for index, piece in enumerate(pieces):
        more = index < len(pieces) - 1
        header = dpkt.ip.IP(src=src, dst=dst, p=dpkt.ip.IP_PROTO_ICMP, ttl=DEFAULT_TTL, id=ident & 0xFFFF)
        header.len = IPV4_HEADER_LEN + len(piece)
        header.mf = int(more)
        header.offset = index * room // 8
        header.data = piece
        frames.append(push_ethernet(dst_mac, src_mac, ETHERTYPE_IPV4, bytes(header)))
    return frames
