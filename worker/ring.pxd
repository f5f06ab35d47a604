"""Byte rings for the data of flows, and the bounded pool their memory comes from."""

from libc.stdint cimport uint8_t, uint32_t
from posix.uio cimport iovec

cdef enum:
    RING_CLASSES = 5
    RING_MIN = 4096
    RING_MAX = 1048576


cdef struct FreeBlock:
    FreeBlock* next


cdef struct HeldBlock:
    HeldBlock* next
    uint8_t* data
    uint32_t size


cdef struct RingPool:
    size_t limit
    size_t in_use
    size_t cached
    bint pinned
    HeldBlock* held
    FreeBlock* free[RING_CLASSES]


cdef struct Ring:
    uint8_t* data
    uint32_t size
    uint32_t start
    uint32_t used


cdef void pool_init(RingPool* pool, size_t limit) noexcept nogil
cdef void pool_unpin(RingPool* pool) noexcept nogil
cdef void pool_close(RingPool* pool) noexcept nogil
cdef bint ring_reserve(RingPool* pool, Ring* ring, size_t size) noexcept nogil
cdef void ring_release(RingPool* pool, Ring* ring) noexcept nogil
cdef void ring_write_at(Ring* ring, uint32_t offset, const uint8_t* data, uint32_t length) noexcept nogil


cdef inline int ring_slices(const Ring* ring, uint32_t offset, uint32_t length, iovec* out) noexcept nogil:
    """The one or two pieces of memory that hold `length` bytes from `offset` after the start."""
    cdef uint32_t at = (ring.start + offset) & (ring.size - 1)
    cdef uint32_t first = ring.size - at
    out[0].iov_base = ring.data + at
    if length <= first:
        out[0].iov_len = length
        return 1
    out[0].iov_len = first
    out[1].iov_base = ring.data
    out[1].iov_len = length - first
    return 2


cdef inline void ring_discard(Ring* ring, uint32_t length) noexcept nogil:
    """Drop `length` bytes from the start; `length` is at most what is used."""
    ring.used -= length
    ring.start = 0 if ring.used == 0 else (ring.start + length) & (ring.size - 1)
