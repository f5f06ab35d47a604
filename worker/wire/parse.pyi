"""A Python face over the datapath's parsers and writers, for tests and tools."""

from collections.abc import Iterable

from worker.wire.headers import EthernetFrame, Ipv4Error, Ipv4Packet, TcpSegment, UdpDatagram

__all__ = [
    "checksum", "checksum_of_pieces", "ethernet_frame", "icmp_message", "ipv4_packet", "pseudo_checksum",
    "read_ethernet", "read_ipv4", "read_tcp", "read_udp", "udp_datagram",
]

def read_ethernet(data: bytes) -> EthernetFrame | None:
    """None: shorter than a header."""
def read_ipv4(data: bytes) -> Ipv4Packet | Ipv4Error: ...
def read_udp(data: bytes) -> UdpDatagram | None:
    """None: malformed; the checksum is not looked at."""
def read_tcp(data: bytes) -> TcpSegment | None:
    """None: malformed; the checksum is not looked at."""
def ethernet_frame(dst: bytes, src: bytes, ethertype: int, payload: bytes) -> bytes:
    """Raises ValueError on a MAC address that is not of 6 bytes."""
def ipv4_packet(
    src: bytes, dst: bytes, proto: int, payload: bytes, ident: int = 0, flags_offset: int = 0
) -> bytes:
    """`flags_offset` is the whole 16-bit field. Raises ValueError on an address that is not of 4 bytes."""
def udp_datagram(sport: int, dport: int, payload: bytes, folded: int) -> bytes:
    """`folded` is the checksum as it lies in memory."""
def icmp_message(kind: int, code: int, rest: int, quote: bytes) -> bytes:
    """Raises ValueError on a quote of more than 128 bytes."""
def checksum(data: bytes) -> bytes:
    """The two bytes of the Internet checksum."""
def checksum_of_pieces(pieces: Iterable[bytes]) -> bytes:
    """The checksum of the pieces one after another, each summed on its own as the datapath does it."""
def pseudo_checksum(src: bytes, dst: bytes, proto: int, data: bytes) -> bytes:
    """The checksum of `data` with its IPv4 pseudo-header."""
