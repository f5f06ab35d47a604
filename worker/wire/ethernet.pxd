"""Ethernet II frames (RFC 894): destination, source, EtherType, payload; no FCS, as links carry none."""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from worker.wire._cursor cimport Cursor, has, store_u16, take, take_u16

cdef enum:
    ETHERNET_HEADER_LEN = 14
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_ARP = 0x0806
    ETHERTYPE_IPV6 = 0x86dd


cdef struct EthernetView:
    const uint8_t* dst
    const uint8_t* src
    uint16_t ethertype


cdef inline bint parse_ethernet(Cursor* c, EthernetView* out) noexcept nogil:
    """Take the header; False: the frame is shorter than one."""
    if not has(c, ETHERNET_HEADER_LEN):
        return False
    out.dst = take(c, 6)
    out.src = take(c, 6)
    out.ethertype = take_u16(c)
    return True


cdef inline void put_ethernet(uint8_t* p, const uint8_t* dst, const uint8_t* src, uint16_t ethertype) noexcept nogil:
    memcpy(p, dst, 6)
    memcpy(p + 6, src, 6)
    store_u16(p + 12, ethertype)
