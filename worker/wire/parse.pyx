# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A Python face over the datapath's parsers and writers (RFC 791, 768, 792, 894, 1071, 9293): for tests and tools.

Every input is copied into a block of exactly its size first, so that AddressSanitizer sees a parser that reads on.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from worker.wire._cursor cimport Cursor, cursor
from worker.wire.addr cimport Addr, addr_from_v4, addr_v4
from worker.wire.checksum cimport csum_add, csum_fold, csum_shift
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN, EthernetView, parse_ethernet, put_ethernet
from worker.wire.icmp cimport ICMP_HEADER_LEN, put_icmp
from worker.wire.ipv4 cimport IPV4_HEADER_LEN, IPV4_OK, Ipv4View, parse_ipv4, pseudo_sum, put_ipv4
from worker.wire.tcp cimport TcpView, parse_tcp
from worker.wire.udp cimport UDP_HEADER_LEN, UdpView, parse_udp, put_udp

from worker.wire.headers import EthernetFrame, Flag, Ipv4Error, Ipv4Packet, TcpSegment, UdpDatagram

__all__ = [
    "checksum", "checksum_of_pieces", "ethernet_frame", "icmp_message", "ipv4_packet", "pseudo_checksum",
    "read_ethernet", "read_ipv4", "read_tcp", "read_udp", "udp_datagram",
]


cdef class Block:
    """A copy of bytes in a block of exactly their size."""
    cdef uint8_t* data
    cdef size_t size

    def __cinit__(self, const uint8_t[::1] data):
        self.size = data.shape[0]
        self.data = <uint8_t*>malloc(self.size if self.size else 1)
        if self.data == NULL:
            raise MemoryError
        if self.size:
            memcpy(self.data, &data[0], self.size)

    def __dealloc__(self):
        free(self.data)

    cdef Cursor start(self):
        return cursor(self.data, self.size)


def read_ethernet(data):
    cdef Block block = Block(data)
    cdef Cursor c = block.start()
    cdef EthernetView view
    if not parse_ethernet(&c, &view):
        return None
    return EthernetFrame(view.dst[:6], view.src[:6], view.ethertype, c.pos[:c.left])


def read_ipv4(data):
    cdef Block block = Block(data)
    cdef Cursor c = block.start()
    cdef Ipv4View view
    cdef int error = parse_ipv4(&c, &view)
    if error != IPV4_OK:
        return Ipv4Error(error)
    return Ipv4Packet(
        addr_v4(&view.src)[:4], addr_v4(&view.dst)[:4], view.proto, view.payload.pos[:view.payload.left], view.ident,
        view.fragment_offset, bool(view.more_fragments), bool(view.dont_fragment), view.ttl,
    )


def read_udp(data):
    cdef Block block = Block(data)
    cdef Cursor c = block.start()
    cdef UdpView view
    if not parse_udp(&c, &view):
        return None
    return UdpDatagram(view.sport, view.dport, view.payload[:view.length])


def read_tcp(data):
    cdef Block block = Block(data)
    cdef Cursor c = block.start()
    cdef TcpView view
    cdef int i
    view.ts_val = view.ts_ecr = 0
    if not parse_tcp(&c, &view):
        return None
    return TcpSegment(
        view.seq, view.ack, Flag(view.flags), view.window, view.payload[:view.length],
        mss=view.mss if view.mss else None,
        window_scale=view.wscale if view.wscale >= 0 else None,
        sack_permitted=bool(view.sack_permitted),
        timestamp=(view.ts_val, view.ts_ecr) if view.has_ts else None,
        sack=tuple([(view.sack[i].start, view.sack[i].end) for i in range(view.sack_count)]),
    )


def ethernet_frame(bytes dst not None, bytes src not None, uint16_t ethertype, bytes payload not None):
    cdef uint8_t header[ETHERNET_HEADER_LEN]
    if len(dst) != 6 or len(src) != 6:
        raise ValueError("a MAC address has 6 bytes")
    put_ethernet(header, dst, src, ethertype)
    return header[:ETHERNET_HEADER_LEN] + payload


cdef Addr ipv4_address(bytes packed) except *:
    if len(packed) != 4:
        raise ValueError(f"IPv4 address of {len(packed)} bytes")
    return addr_from_v4(packed)


def ipv4_packet(bytes src not None, bytes dst not None, uint8_t proto, bytes payload not None, uint16_t ident=0,
                uint16_t flags_offset=0):
    cdef uint8_t header[IPV4_HEADER_LEN]
    cdef Addr source = ipv4_address(src)
    cdef Addr destination = ipv4_address(dst)
    put_ipv4(header, &source, &destination, proto, len(payload), ident, flags_offset)
    return header[:IPV4_HEADER_LEN] + payload


def udp_datagram(uint16_t sport, uint16_t dport, bytes payload not None, uint16_t folded):
    cdef uint8_t header[UDP_HEADER_LEN]
    put_udp(header, sport, dport, len(payload), folded)
    return header[:UDP_HEADER_LEN] + payload


def icmp_message(uint8_t kind, uint8_t code, unsigned int rest, bytes quote not None):
    cdef uint8_t message[ICMP_HEADER_LEN + 128]
    if len(quote) > 128:
        raise ValueError("a quote has at most 128 bytes")
    put_icmp(message, kind, code, rest, quote, len(quote))
    return message[:ICMP_HEADER_LEN + len(quote)]


cdef bytes field_of(uint64_t total):
    cdef uint16_t field = csum_fold(total)
    return (<char*>&field)[:2]


def checksum(data):
    cdef Block block = Block(data)
    return field_of(csum_add(0, block.data, block.size))


def checksum_of_pieces(pieces):
    cdef uint64_t total = 0
    cdef uint64_t part
    cdef size_t length = 0
    cdef Block block
    for piece in pieces:
        block = Block(piece)
        part = csum_add(0, block.data, block.size)
        total += csum_shift(part) if length & 1 else part
        length += block.size
    return field_of(total)


def pseudo_checksum(bytes src not None, bytes dst not None, uint8_t proto, data):
    cdef Block block = Block(data)
    cdef Addr source = ipv4_address(src)
    cdef Addr destination = ipv4_address(dst)
    return field_of(csum_add(pseudo_sum(&source, &destination, proto, block.size), block.data, block.size))
