"""IPv4 headers (RFC 791): options lie between header and payload, fragments are told apart, the payload is cut
to the total length."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from worker.wire._cursor cimport Cursor, cursor, has, load_u16, store_u16
from worker.wire.addr cimport Addr, addr_from_v4, addr_v4
from worker.wire.checksum cimport csum_add, csum_fold

cdef enum:
    IPV4_HEADER_LEN = 20
    IPPROTO_ICMP_ = 1
    IPPROTO_TCP_ = 6
    IPPROTO_UDP_ = 17
    IPV4_MAX_LEN = 65535
    IPV4_DF = 0x4000
    IPV4_MF = 0x2000
    IPV4_OPTION_END = 0
    IPV4_OPTION_NOP = 1
    IPV4_OPTION_RECORD_ROUTE = 7
    IPV4_OPTION_TIMESTAMP = 68
    IPV4_OPTION_ROUTER_ALERT = 148  # RFC 2113

cdef enum Ipv4Error:
    IPV4_OK = 0
    IPV4_TRUNCATED = 1
    IPV4_MALFORMED = 2
    IPV4_BAD_CHECKSUM = 3


cdef struct Ipv4View:
    Addr src
    Addr dst
    const uint8_t* header
    size_t header_len
    Cursor payload
    uint16_t ident
    uint16_t fragment_offset
    bint more_fragments
    bint dont_fragment
    uint8_t ttl
    uint8_t proto


cdef inline int parse_ipv4(const Cursor* c, Ipv4View* out) noexcept nogil:
    """Check the header at `c` against the bytes at hand; an `Ipv4Error`."""
    cdef const uint8_t* p = c.pos
    cdef size_t header_len
    cdef size_t total
    cdef unsigned int flags
    if not has(c, IPV4_HEADER_LEN):
        return IPV4_TRUNCATED
    header_len = (p[0] & 15) * 4
    total = load_u16(p + 2)
    if p[0] >> 4 != 4 or header_len < IPV4_HEADER_LEN or total < header_len:
        return IPV4_MALFORMED
    if not has(c, total):
        return IPV4_TRUNCATED
    if csum_fold(csum_add(0, p, header_len)) != 0:
        return IPV4_BAD_CHECKSUM
    flags = load_u16(p + 6)
    out.header = p
    out.header_len = header_len
    out.src = addr_from_v4(p + 12)
    out.dst = addr_from_v4(p + 16)
    out.ident = load_u16(p + 4)
    out.fragment_offset = <uint16_t>((flags & 0x1fff) * 8)
    out.more_fragments = (flags & IPV4_MF) != 0
    out.dont_fragment = (flags & IPV4_DF) != 0
    out.ttl = p[8]
    out.proto = p[9]
    out.payload = cursor(p + header_len, total - header_len)
    return IPV4_OK


cdef inline void put_ipv4(
    uint8_t* p, const Addr* src, const Addr* dst, uint8_t proto, size_t payload_len, uint16_t ident,
    unsigned int flags_offset
) noexcept nogil:
    """Write a header without options; `flags_offset` is the whole 16-bit field (RFC 791 section 3.1)."""
    cdef uint16_t checksum
    p[0] = 0x45
    p[1] = 0
    store_u16(p + 2, <unsigned int>(IPV4_HEADER_LEN + payload_len))
    store_u16(p + 4, ident)
    store_u16(p + 6, flags_offset)
    p[8] = 64
    p[9] = proto
    p[10] = 0
    p[11] = 0
    memcpy(p + 12, addr_v4(src), 4)
    memcpy(p + 16, addr_v4(dst), 4)
    checksum = csum_fold(csum_add(0, p, IPV4_HEADER_LEN))
    memcpy(p + 10, &checksum, 2)


cdef inline uint64_t pseudo_sum(const Addr* src, const Addr* dst, uint8_t proto, size_t length) noexcept nogil:
    """The partial checksum of the pseudo-header of TCP and UDP over IPv4 (RFC 9293 section 3.1, RFC 768)."""
    cdef uint8_t tail[4]
    tail[0] = 0
    tail[1] = proto
    store_u16(tail + 2, <unsigned int>length)
    return csum_add(csum_add(csum_add(0, addr_v4(src), 4), addr_v4(dst), 4), tail, 4)
