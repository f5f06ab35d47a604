"""What the parsers of the datapath find in a packet, as Python values: for tests and tools, never for traffic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag


class Flag(IntFlag):
    """The control bits of TCP that are acted upon (RFC 9293 section 3.1)."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


class Ipv4Error(IntEnum):
    """Why an IPv4 packet is refused."""

    TRUNCATED = 1
    MALFORMED = 2
    BAD_CHECKSUM = 3


@dataclass(frozen=True, slots=True)
class EthernetFrame:
    """RFC 894."""

    dst: bytes
    src: bytes
    ethertype: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ipv4Packet:
    """RFC 791; options are skipped, what lies behind the total length is cut off."""

    src: bytes
    """4 bytes."""
    dst: bytes
    proto: int
    payload: bytes
    ident: int = 0
    fragment_offset: int = 0
    """In bytes."""
    more_fragments: bool = False
    dont_fragment: bool = False
    ttl: int = 64


@dataclass(frozen=True, slots=True)
class UdpDatagram:
    """RFC 768."""

    sport: int
    dport: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class TcpSegment:
    """RFC 9293 section 3.1, without the ports, and the options that are understood."""

    seq: int = 0
    ack: int = 0
    flags: Flag = Flag.ACK
    window: int = 0
    """The field as it is sent, not scaled."""
    payload: bytes = b""
    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    timestamp: tuple[int, int] | None = None
    """TSval and TSecr."""
    sack: tuple[tuple[int, int], ...] = ()
