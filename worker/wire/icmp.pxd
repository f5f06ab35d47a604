"""ICMP messages that the datapath itself sends: destination unreachable and time exceeded (RFC 792, RFC 1191)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from worker.wire._cursor cimport store_u32
from worker.wire.checksum cimport csum_add, csum_fold

cdef enum:
    ICMP_HEADER_LEN = 8
    ICMP_ECHO_REPLY = 0
    ICMP_UNREACHABLE = 3
    ICMP_SOURCE_QUENCH = 4
    ICMP_REDIRECT = 5
    ICMP_ECHO_REQUEST = 8
    ICMP_TIME_EXCEEDED = 11
    ICMP_INFORMATION_REPLY = 16
    ICMP_NET_UNREACHABLE = 0
    ICMP_HOST_UNREACHABLE = 1
    ICMP_PORT_UNREACHABLE = 3
    ICMP_FRAGMENTATION_NEEDED = 4
    ICMP_ADMIN_PROHIBITED = 13
    ICMP_QUOTE_LEN = 68
    # The most that is quoted: an IPv4 header with all options, and 8 bytes (RFC 792).


cdef inline void put_icmp(
    uint8_t* p, uint8_t kind, uint8_t code, uint32_t rest, const uint8_t* quote, size_t quote_len
) noexcept nogil:
    """Write an error message; `rest` is the second word of the header (the MTU for 'fragmentation needed')."""
    cdef uint16_t checksum
    p[0] = kind
    p[1] = code
    p[2] = 0
    p[3] = 0
    store_u32(p + 4, rest)
    memcpy(p + ICMP_HEADER_LEN, quote, quote_len)
    checksum = csum_fold(csum_add(0, p, ICMP_HEADER_LEN + quote_len))
    memcpy(p + 2, &checksum, 2)
