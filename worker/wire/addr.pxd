"""IP addresses as 16 bytes, IPv4 as an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy


cdef struct Addr:
    uint64_t hi
    uint64_t lo


cdef inline Addr addr_from_v4(const uint8_t* p) noexcept nogil:
    cdef Addr a
    cdef uint8_t* b = <uint8_t*>&a.lo
    a.hi = 0
    b[0] = 0
    b[1] = 0
    b[2] = 0xff
    b[3] = 0xff
    memcpy(b + 4, p, 4)
    return a


cdef inline Addr addr_from_16(const uint8_t* p) noexcept nogil:
    cdef Addr a
    memcpy(&a, p, 16)
    return a


cdef inline bint addr_is_v4(const Addr* a) noexcept nogil:
    cdef const uint8_t* b = <const uint8_t*>&a.lo
    return a.hi == 0 and b[0] == 0 and b[1] == 0 and b[2] == 0xff and b[3] == 0xff


cdef inline const uint8_t* addr_v4(const Addr* a) noexcept nogil:
    """The four bytes of an IPv4 address, in network order."""
    return (<const uint8_t*>&a.lo) + 4


cdef inline bint is_loopback(const Addr* a) noexcept nogil:
    """127/8 (RFC 1122 section 3.2.1.3)."""
    return addr_is_v4(a) and addr_v4(a)[0] == 127


cdef inline bint addr_eq(const Addr* a, const Addr* b) noexcept nogil:
    return a.hi == b.hi and a.lo == b.lo


cdef inline bint addr_in_prefix(const Addr* a, const Addr* prefix, int bits) noexcept nogil:
    """Whether `a` is in `prefix`/`bits`, bits counted of 128."""
    cdef int whole = bits >> 3
    cdef int rest = bits & 7
    cdef const uint8_t* x = <const uint8_t*>a
    cdef const uint8_t* y = <const uint8_t*>prefix
    if memcmp(x, y, whole) != 0:
        return False
    return rest == 0 or ((x[whole] ^ y[whole]) >> (8 - rest)) == 0
