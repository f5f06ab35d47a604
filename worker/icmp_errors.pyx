# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""ICMP errors that the gateway sends to the guest (RFC 792; rate limit as RFC 1812 section 4.3.2.8 asks)."""

from libc.errno cimport EACCES, EHOSTUNREACH, ENETUNREACH, EPERM
from libc.stdint cimport uint8_t, uint32_t

from worker.core cimport count
from worker.counters cimport C_ICMP_RATE_LIMITED, C_ICMP_TX_ERRORS
from worker.link.output cimport out_commit, out_reserve
from worker.wire.addr cimport addr_from_v4
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, put_ethernet
from worker.wire.icmp cimport (
    ICMP_ADMIN_PROHIBITED, ICMP_HEADER_LEN, ICMP_HOST_UNREACHABLE, ICMP_NET_UNREACHABLE, ICMP_QUOTE_LEN, put_icmp,
)
from worker.wire.ipv4 cimport IPPROTO_ICMP_, IPV4_HEADER_LEN, put_ipv4

cdef enum:
    MAX_ERRORS_PER_SECOND = 1000


cdef int unreachable_code(int error) noexcept nogil:
    """The code of 'destination unreachable' that says what a host's errno says; -1: none does."""
    if error == EHOSTUNREACH:
        return ICMP_HOST_UNREACHABLE
    if error == ENETUNREACH:
        return ICMP_NET_UNREACHABLE
    if error == EACCES or error == EPERM:
        return ICMP_ADMIN_PROHIBITED
    return -1


cdef void icmp_error(
    Core* core, const Addr* src, uint8_t kind, uint8_t code, uint32_t rest, const uint8_t* quote, size_t quote_len
) noexcept nogil:
    """Send an error about the packet whose IP header and first 8 payload bytes are `quote`, to its sender."""
    cdef size_t total
    cdef uint8_t* p
    cdef Addr dst
    if core.now - core.icmp_window >= 1000000:
        core.icmp_window = core.now
        core.icmp_sent = 0
    if core.icmp_sent >= MAX_ERRORS_PER_SECOND or not core.guest_mac_known:
        count(core, C_ICMP_RATE_LIMITED)
        return
    if quote_len > ICMP_QUOTE_LEN:
        quote_len = ICMP_QUOTE_LEN
    total = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + ICMP_HEADER_LEN + quote_len
    p = out_reserve(core, total)
    if p == NULL:
        return
    core.icmp_sent += 1
    dst = addr_from_v4(quote + 12)
    put_ethernet(p, core.guest_mac, core.gateway_mac, ETHERTYPE_IPV4)
    put_ipv4(p + ETHERNET_HEADER_LEN, src, &dst, IPPROTO_ICMP_, ICMP_HEADER_LEN + quote_len, core.next_ident, 0)
    core.next_ident += 1
    put_icmp(p + ETHERNET_HEADER_LEN + IPV4_HEADER_LEN, kind, code, rest, quote, quote_len)
    out_commit(core, total)
    count(core, C_ICMP_TX_ERRORS)
