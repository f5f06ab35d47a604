# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Byte rings for the data of flows, and the bounded pool their memory comes from.

A ring's size is one of a few powers of two, so that positions wrap by a mask and blocks can be used again. A flow has
a ring only while it holds data: ten thousand idle flows hold none. Freed blocks are handed out again last in, first
out, which keeps the working set in the processor's cache.

While the link holds a batch that it has not sent yet (`pinned`), that batch points into rings: what is released then
is kept aside until `pool_unpin`.
"""

from cython cimport final
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.uio cimport iovec

__all__ = ["ByteRing", "Pool"]

cdef enum:
    CACHE_LIMIT = 4194304
    # Freed blocks kept for use again, bytes in all; more goes back to the C library.


cdef void pool_init(RingPool* pool, size_t limit) noexcept nogil:
    """An empty pool that hands out at most `limit` bytes."""
    cdef int i
    pool.limit = limit
    pool.in_use = 0
    pool.cached = 0
    pool.pinned = False
    pool.held = NULL
    for i in range(RING_CLASSES):
        pool.free[i] = NULL


cdef inline int class_of(size_t size) noexcept nogil:
    cdef int i = 0
    cdef size_t block = RING_MIN
    while block < size:
        block <<= 2
        i += 1
    return i


cdef void give_back(RingPool* pool, uint8_t* data, uint32_t size) noexcept nogil:
    cdef FreeBlock* block = <FreeBlock*>data
    cdef int i = class_of(size)
    pool.in_use -= size
    if pool.cached + size > CACHE_LIMIT:
        free(data)
        return
    block.next = pool.free[i]
    pool.free[i] = block
    pool.cached += size


cdef uint8_t* block_take(RingPool* pool, size_t size) noexcept nogil:
    cdef int i = class_of(size)
    cdef FreeBlock* block = pool.free[i]
    if size > pool.limit - pool.in_use:
        return NULL
    if block != NULL:
        pool.free[i] = block.next
        pool.cached -= size
    else:
        block = <FreeBlock*>malloc(size)
        if block == NULL:
            return NULL
    pool.in_use += size
    return <uint8_t*>block


cdef void block_release(RingPool* pool, uint8_t* data, uint32_t size) noexcept nogil:
    cdef HeldBlock* held
    if pool.pinned:
        held = <HeldBlock*>malloc(sizeof(HeldBlock))
        if held == NULL:
            return  # lost rather than used while the link still points into it
        held.next = pool.held
        held.data = data
        held.size = size
        pool.held = held
        return
    give_back(pool, data, size)


cdef void pool_unpin(RingPool* pool) noexcept nogil:
    """The link has sent its batch: what was kept aside can be used again."""
    cdef HeldBlock* held
    pool.pinned = False
    while pool.held != NULL:
        held = pool.held
        pool.held = held.next
        give_back(pool, held.data, held.size)
        free(held)


cdef void pool_close(RingPool* pool) noexcept nogil:
    """Free every cached block; rings must have been released before."""
    cdef int i
    cdef FreeBlock* block
    pool_unpin(pool)
    for i in range(RING_CLASSES):
        while pool.free[i] != NULL:
            block = pool.free[i]
            pool.free[i] = block.next
            free(block)
    pool.cached = 0


cdef bint ring_reserve(RingPool* pool, Ring* ring, size_t size) noexcept nogil:
    """Make the ring at least `size` bytes large, keeping its contents by offset; False: over a limit."""
    cdef size_t wanted = RING_MIN
    cdef uint8_t* data
    cdef iovec pieces[2]
    cdef int n
    if size <= ring.size:
        return True
    if size > RING_MAX:
        return False
    while wanted < size:
        wanted <<= 2
    data = block_take(pool, wanted)
    if data == NULL:
        return False
    if ring.data != NULL:
        n = ring_slices(ring, 0, ring.size, pieces)
        memcpy(data, pieces[0].iov_base, pieces[0].iov_len)
        if n == 2:
            memcpy(data + pieces[0].iov_len, pieces[1].iov_base, pieces[1].iov_len)
        block_release(pool, ring.data, ring.size)
    ring.data = data
    ring.size = <uint32_t>wanted
    ring.start = 0
    return True


cdef void ring_release(RingPool* pool, Ring* ring) noexcept nogil:
    """Give the memory back; the ring is empty afterwards."""
    if ring.data != NULL:
        block_release(pool, ring.data, ring.size)
    ring.data = NULL
    ring.size = 0
    ring.start = 0
    ring.used = 0


cdef void ring_write_at(Ring* ring, uint32_t offset, const uint8_t* data, uint32_t length) noexcept nogil:
    """Copy `length` bytes to `offset` after the start; offset + length is at most the size."""
    cdef iovec pieces[2]
    if length == 0:
        return
    if ring_slices(ring, offset, length, pieces) == 2:
        memcpy(pieces[1].iov_base, data + pieces[0].iov_len, pieces[1].iov_len)
    memcpy(pieces[0].iov_base, data, pieces[0].iov_len)


# --- a Python face, for tests and tools


@final
cdef class Pool:
    cdef RingPool pool

    def __init__(self, size_t limit):
        pool_init(&self.pool, limit)

    def __dealloc__(self):
        pool_close(&self.pool)

    def pin(self):
        self.pool.pinned = True

    def unpin(self):
        pool_unpin(&self.pool)

    @property
    def in_use(self):
        return self.pool.in_use

    @property
    def cached(self):
        return self.pool.cached


@final
cdef class ByteRing:
    cdef Pool owner
    cdef Ring ring

    def __init__(self, Pool owner not None):
        self.owner = owner

    def __dealloc__(self):
        if self.owner is not None:
            ring_release(&self.owner.pool, &self.ring)

    def reserve(self, size_t size):
        return bool(ring_reserve(&self.owner.pool, &self.ring, size))

    def append(self, const uint8_t[::1] data):
        if data.shape[0] > self.ring.size - self.ring.used:
            raise ValueError("more than was reserved")
        if data.shape[0]:
            ring_write_at(&self.ring, self.ring.used, &data[0], <uint32_t>data.shape[0])
            self.ring.used += <uint32_t>data.shape[0]

    def discard(self, uint32_t length):
        if length > self.ring.used:
            raise ValueError("more than there is")
        ring_discard(&self.ring, length)

    def release(self):
        ring_release(&self.owner.pool, &self.ring)

    def pieces(self, uint32_t offset, uint32_t length):
        cdef iovec parts[2]
        cdef int n
        cdef int i
        if offset > self.ring.used or length > self.ring.used - offset:
            raise ValueError("more than there is")
        if length == 0:
            return []
        n = ring_slices(&self.ring, offset, length, parts)
        return [(<char*>parts[i].iov_base)[:parts[i].iov_len] for i in range(n)]

    @property
    def size(self):
        return self.ring.size

    def __len__(self):
        return self.ring.used
