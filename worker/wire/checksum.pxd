"""The Internet checksum (RFC 1071), as a sum that can be carried from piece to piece.

A partial sum is 64 bits wide and in the machine's byte order (RFC 1071 section 2 B: the sum does not depend on it);
`csum_fold` makes the 16-bit field of it, to be stored as it lies in memory.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* The bulk of a payload, in vectors: 32-bit words into 64-bit lanes, where no carry is lost below 2**32
       words. Where the compiler can, it makes a second version for processors with AVX2, chosen when the module is
       loaded. */
    #if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && \
        !defined(__SANITIZE_ADDRESS__)
    __attribute__((target_clones("avx2", "default"), unused, noinline))
    #else
    __attribute__((unused))
    #endif
    static uint64_t csum_bulk(const uint8_t *p, size_t blocks) {
        typedef uint64_t lanes __attribute__((vector_size(32)));
        const lanes low = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
        lanes a = {0}, b = {0}, c = {0}, d = {0};
        for (; blocks; blocks--, p += 64) {
            lanes x, y;
            memcpy(&x, p, 32);
            memcpy(&y, p + 32, 32);
            a += x & low;
            b += x >> 32;
            c += y & low;
            d += y >> 32;
        }
        a += b + c + d;
        return a[0] + a[1] + a[2] + a[3];
    }
    static inline uint64_t csum_add(uint64_t sum, const void *data, size_t n) {
        const uint8_t *p = (const uint8_t *)data;
        if (n >= 64) {
            sum += csum_bulk(p, n / 64);
            p += n & ~(size_t)63;
            n &= 63;
        }
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
