"""The one place of pointer arithmetic on a guest's bytes: a checked cursor, and big-endian loads and stores.

A parser asks `has` once for a fixed header and then takes fields, which cannot fail. The comparison never adds to a
length, so it cannot overflow.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef struct Cursor:
    const uint8_t* pos
    size_t left


cdef inline Cursor cursor(const uint8_t* data, size_t length) noexcept nogil:
    cdef Cursor c
    c.pos = data
    c.left = length
    return c


cdef inline bint has(const Cursor* c, size_t n) noexcept nogil:
    return n <= c.left


cdef inline uint16_t load_u16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((<unsigned int>p[0] << 8) | p[1])


cdef inline uint32_t load_u32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void store_u16(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value


cdef inline void store_u32(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value


cdef inline void skip(Cursor* c, size_t n) noexcept nogil:
    c.pos += n
    c.left -= n


cdef inline uint8_t take_u8(Cursor* c) noexcept nogil:
    cdef uint8_t value = c.pos[0]
    skip(c, 1)
    return value


cdef inline uint16_t take_u16(Cursor* c) noexcept nogil:
    cdef uint16_t value = load_u16(c.pos)
    skip(c, 2)
    return value


cdef inline uint32_t take_u32(Cursor* c) noexcept nogil:
    cdef uint32_t value = load_u32(c.pos)
    skip(c, 4)
    return value


cdef inline const uint8_t* take(Cursor* c, size_t n) noexcept nogil:
    cdef const uint8_t* start = c.pos
    skip(c, n)
    return start
