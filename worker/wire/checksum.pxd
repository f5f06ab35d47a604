"""The Internet checksum (RFC 1071), as a sum that can be carried from piece to piece.

A partial sum is 64 bits wide and in the machine's byte order (RFC 1071 section 2 B: the sum does not depend on it);
`csum_fold` makes the 16-bit field of it, to be stored as it lies in memory.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* 64 bytes a turn into two 64-bit lanes of 32-bit words: no carry can be lost below 2**32 words, and the
       compiler turns the inner loop into vector instructions. */
    static inline uint64_t csum_add(uint64_t sum, const void *data, size_t n) {
        const uint8_t *p = (const uint8_t *)data;
        uint64_t even = 0, odd = 0;
        while (n >= 64) {
            for (int i = 0; i < 16; i += 2) {
                uint32_t a, b;
                memcpy(&a, p + 4 * i, 4);
                memcpy(&b, p + 4 * i + 4, 4);
                even += a;
                odd += b;
            }
            p += 64;
            n -= 64;
        }
        sum += even + odd;
        while (n >= 4) {
            uint32_t a;
            memcpy(&a, p, 4);
            sum += a;
            p += 4;
            n -= 4;
        }
        if (n >= 2) {
            uint16_t a;
            memcpy(&a, p, 2);
            sum += a;
            p += 2;
            n -= 2;
        }
        if (n) {
            uint8_t last[2] = {*p, 0};
            uint16_t a;
            memcpy(&a, last, 2);
            sum += a;
        }
        return sum;
    }
    static inline uint16_t csum_partial16(uint64_t sum) {
        sum = (sum >> 32) + (sum & 0xffffffff);
        sum = (sum >> 32) + (sum & 0xffffffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        return (uint16_t)sum;
    }
    """
    uint64_t csum_add(uint64_t sum, const void* data, size_t n) noexcept nogil
    uint16_t csum_partial16(uint64_t sum) noexcept nogil


cdef inline uint16_t csum_fold(uint64_t sum) noexcept nogil:
    """The field's value, in memory order."""
    return <uint16_t>~csum_partial16(sum)


cdef inline uint64_t csum_shift(uint64_t sum) noexcept nogil:
    """The sum of a piece that starts at an odd offset (RFC 1071 section 2 B: swap its bytes)."""
    cdef uint16_t folded = csum_partial16(sum)
    return <uint16_t>((folded << 8) | (folded >> 8))
