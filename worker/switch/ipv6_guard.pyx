# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""What no VM may be to others over IPv6: their router (RFC 6105, RA-Guard) or their DHCP server (RFC 7610).

A guest believes any router advertisement, and takes its default route and its resolvers from it. Moorage has no IPv6
router, so that whoever speaks as one is an intruder, or wants a network without port security. A packet whose headers
do not say what it is, in its first fragment, is taken for the worst (RFC 7113 section 3, RFC 7112).
"""

from worker.wire._cursor cimport load_u16
from worker.wire.ipv4 cimport IPPROTO_UDP_
from worker.wire.udp cimport UDP_HEADER_LEN

cdef enum:
    IPV6_HEADER_LEN = 40
    IPV6_NEXT_HEADER = 6
    MAX_EXTENSIONS = 8
    EXTENSION_UNIT = 8  # bytes; a header's length counts them, without the first
    HOP_BY_HOP = 0
    ROUTING = 43
    FRAGMENT = 44
    AUTHENTICATION = 51
    ICMPV6 = 58
    DESTINATION_OPTIONS = 60
    FRAGMENT_OFFSET = 0xfff8
    ROUTER_ADVERTISEMENT = 134  # RFC 4861 section 4.2
    REDIRECT = 137  # section 4.5
    PORT_DHCPV6_SERVER = 547  # RFC 9915 section 7.2


cdef size_t length_of(int kind, const uint8_t* extension) noexcept nogil:
    """How long an extension header is (RFC 8200 section 4, RFC 4302 section 2.2)."""
    if kind == FRAGMENT:
        return EXTENSION_UNIT
    if kind == AUTHENTICATION:
        return (extension[1] + 2) * 4
    return (extension[1] + 1) * EXTENSION_UNIT


cdef bint is_routers(const uint8_t* packet, size_t length) noexcept nogil:
    """Whether an IPv6 packet is one that only a router or a DHCP server sends, or may be one."""
    cdef size_t at = IPV6_HEADER_LEN
    cdef int kind
    cdef int following
    cdef int _
    if length < IPV6_HEADER_LEN or packet[0] >> 4 != 6:
        return False  # nobody takes it
    kind = packet[IPV6_NEXT_HEADER]
    for _ in range(MAX_EXTENSIONS):
        if kind == ICMPV6:
            return at >= length or packet[at] == ROUTER_ADVERTISEMENT or packet[at] == REDIRECT
        if kind == IPPROTO_UDP_:
            return at + UDP_HEADER_LEN > length or load_u16(packet + at) == PORT_DHCPV6_SERVER
        if kind not in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS):
            return False
        if at + EXTENSION_UNIT > length:
            return True
        if kind == FRAGMENT and load_u16(packet + at + 2) & FRAGMENT_OFFSET:
            return False  # of no use without the first
        following = packet[at]
        at += length_of(kind, packet + at)
        kind = following
    return True
