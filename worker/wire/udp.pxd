"""UDP headers (RFC 768): a length field shorter than the payload cuts it, a longer one is an error."""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from worker.wire._cursor cimport Cursor, has, load_u16, store_u16

cdef enum:
    UDP_HEADER_LEN = 8
    UDP_MAX_PAYLOAD = 65507


cdef struct UdpView:
    uint16_t sport
    uint16_t dport
    uint16_t checksum
    const uint8_t* payload
    size_t length


cdef inline bint parse_udp(const Cursor* c, UdpView* out) noexcept nogil:
    """Check the header against the bytes at hand; False: malformed."""
    cdef const uint8_t* p = c.pos
    cdef size_t length
    if not has(c, UDP_HEADER_LEN):
        return False
    length = load_u16(p + 4)
    if length < UDP_HEADER_LEN or not has(c, length):
        return False
    out.sport = load_u16(p)
    out.dport = load_u16(p + 2)
    out.checksum = load_u16(p + 6)
    out.payload = p + UDP_HEADER_LEN
    out.length = length - UDP_HEADER_LEN
    return True


cdef inline void put_udp(
    uint8_t* p, uint16_t sport, uint16_t dport, size_t payload_len, uint16_t checksum
) noexcept nogil:
    """Write the header; `checksum` as folded (in memory order), 0 being sent as 0xffff (RFC 768)."""
    cdef uint16_t field = checksum if checksum != 0 else 0xffff
    store_u16(p, sport)
    store_u16(p + 2, dport)
    store_u16(p + 4, <unsigned int>(UDP_HEADER_LEN + payload_len))
    memcpy(p + 6, &field, 2)
