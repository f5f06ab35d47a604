# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""What goes out to the guest on a stream link.

Two sources share one `sendmsg`: the fifo, where frames are written whole (replies, datagrams, ICMP errors, RSTs), and
the batch, where TCP puts a header slot and points at the payload in its ring. When the link takes only a part, the
rest of the batch stays as it is and nothing is added to it until the link has taken that too; the rings' pool is
pinned meanwhile. TCP waits in its flows, so nothing of it is ever dropped; the fifo is bounded, and what does not fit
is counted in `link.tx_dropped`.
"""

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove
from posix.uio cimport iovec

from worker.core cimport (
    LINK_PREFIX_MAX, OUT_BATCH_BYTES, OUT_FIFO_SIZE, OUT_SLOT_LEN, OUT_SLOTS, TAG_LINK, Core, count, count_by,
    token_of,
)
from worker.counters cimport (
    C_LINK_BLOCKED, C_LINK_TX_BYTES, C_LINK_TX_DROPPED, C_LINK_TX_FRAMES, C_SYSCALLS_LINK_SEND,
)
from worker.readiness cimport READY_EDGE, READY_IN, READY_OUT, ready_modify
from worker.ring cimport pool_unpin
from worker.wire._cursor cimport store_u32

cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL

cdef extern from "<string.h>" nogil:
    void* memset(void* s, int c, size_t n)

cdef enum:
    IOV_LIMIT = 1024  # of one sendmsg (IOV_MAX on Linux)
    OUT_IOVS = OUT_SLOTS * 3 + 1  # each segment: a header and at most two pieces of a ring


cdef int out_init(Core* core) noexcept nogil:
    """0, or -1: no memory."""
    core.out.iov = <iovec*>malloc(OUT_IOVS * sizeof(iovec))
    core.out.slots = <uint8_t*>malloc(OUT_SLOTS * OUT_SLOT_LEN)
    core.out.fifo = <uint8_t*>malloc(OUT_FIFO_SIZE)
    return 0 if core.out.iov != NULL and core.out.slots != NULL and core.out.fifo != NULL else -1


cdef void out_close(Core* core) noexcept nogil:
    free(core.out.iov)
    free(core.out.slots)
    free(core.out.fifo)
    core.out.iov = NULL
    core.out.slots = NULL
    core.out.fifo = NULL


cdef inline void put_prefix(const Core* core, uint8_t* p, size_t frame_len) noexcept nogil:
    if core.prefix_len == 4:
        store_u32(p, <unsigned int>frame_len)
    elif core.prefix_len == 2:
        p[0] = <uint8_t>frame_len
        p[1] = <uint8_t>(frame_len >> 8)


cdef size_t out_fifo_room(const Core* core) noexcept nogil:
    """How long a frame may be that still fits."""
    cdef size_t left = OUT_FIFO_SIZE - core.out.fifo_end
    return left - LINK_PREFIX_MAX if left > LINK_PREFIX_MAX else 0


cdef uint8_t* out_reserve(Core* core, size_t frame_len) noexcept nogil:
    """Where to write a frame of that length; NULL (and counted): the guest does not keep up."""
    if core.out.fifo_taken and core.out.count == 0:
        memmove(core.out.fifo, core.out.fifo + core.out.fifo_taken, core.out.fifo_end - core.out.fifo_taken)
        core.out.fifo_end -= core.out.fifo_taken
        core.out.fifo_taken = 0
    if frame_len > out_fifo_room(core):
        count(core, C_LINK_TX_DROPPED)
        return NULL
    return core.out.fifo + core.out.fifo_end + core.prefix_len


cdef void out_commit(Core* core, size_t frame_len) noexcept nogil:
    """The frame that was reserved is written; it may have become shorter."""
    put_prefix(core, core.out.fifo + core.out.fifo_end, frame_len)
    core.out.fifo_end += core.prefix_len + frame_len
    count(core, C_LINK_TX_FRAMES)
    count_by(core, C_LINK_TX_BYTES, frame_len)


cdef bint out_frame(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    """Queue a copy of a frame; False (and counted): no room."""
    cdef uint8_t* p = out_reserve(core, length)
    if p == NULL:
        return False
    memcpy(p, frame, length)
    out_commit(core, length)
    return True


cdef bint out_batch_full(const Core* core) noexcept nogil:
    """No further segment may be added to the batch now."""
    return core.out.blocked or core.out.slot_count == OUT_SLOTS or core.out.bytes >= OUT_BATCH_BYTES


cdef uint8_t* out_slot(Core* core) noexcept nogil:
    """Where to write the headers of the next segment of the batch, which must not be full."""
    core.out.slot_count += 1
    return core.out.slots + (core.out.slot_count - 1) * OUT_SLOT_LEN + LINK_PREFIX_MAX


cdef void out_push(Core* core, const uint8_t* data, size_t length) noexcept nogil:
    """Add a piece of memory to the batch; it must stay until the link has taken it."""
    core.out.iov[core.out.count].iov_base = <void*>data
    core.out.iov[core.out.count].iov_len = length
    core.out.count += 1
    core.out.bytes += length
    core.pool.pinned = True


cdef void out_finish_frame(Core* core, uint8_t* frame, size_t header_len, size_t payload_len) noexcept nogil:
    """Add the headers written to a slot; the payload's pieces are pushed after it."""
    put_prefix(core, frame - core.prefix_len, header_len + payload_len)
    out_push(core, frame - core.prefix_len, header_len + core.prefix_len)
    count(core, C_LINK_TX_FRAMES)
    count_by(core, C_LINK_TX_BYTES, header_len + payload_len)


cdef bint out_pending(const Core* core) noexcept nogil:
    """Something waits to be sent."""
    return core.out.count != 0 or core.out.fifo_end != core.out.fifo_taken


cdef void advance(Core* core, size_t n) noexcept nogil:
    cdef iovec* v
    while n:
        v = &core.out.iov[core.out.sent]
        if n < v.iov_len:
            v.iov_base = <uint8_t*>v.iov_base + n
            v.iov_len -= n
            return
        n -= v.iov_len
        core.out.sent += 1


cdef int block(Core* core) noexcept nogil:
    if not core.out.blocked:
        count(core, C_LINK_BLOCKED)
    core.out.blocked = True
    core.out.blocked_at = core.now
    return 1


cdef void out_watch(Core* core, bint on) noexcept nogil:
    """Be told when a full link takes more. Off while it is not full: each read of the guest's would wake us."""
    if core.out.watched != on:
        core.out.watched = on
        ready_modify(
            &core.ready, core.link_fd, token_of(TAG_LINK, NULL), READY_IN | READY_EDGE | (READY_OUT if on else 0)
        )


cdef int send_batch(Core* core) noexcept nogil:
    """0: all sent; 1: blocked; else a negative errno."""
    cdef msghdr message
    cdef ssize_t n
    cdef int left
    cdef int until
    memset(&message, 0, sizeof(msghdr))
    while core.out.sent < core.out.count:
        left = core.out.count - core.out.sent
        message.msg_iov = core.out.iov + core.out.sent
        message.msg_iovlen = left if left < IOV_LIMIT else IOV_LIMIT
        until = core.out.sent + <int>message.msg_iovlen
        n = sendmsg(core.link_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        count(core, C_SYSCALLS_LINK_SEND)
        if n >= 0:
            advance(core, n)
            if core.out.sent < until:
                return block(core)  # a stream that takes a part is full
        elif errno == EAGAIN or errno == ENOBUFS:
            return block(core)
        elif errno != EINTR:
            return -errno
    core.out.blocked = False
    core.out.count = 0
    core.out.sent = 0
    core.out.bytes = 0
    core.out.slot_count = 0
    if core.out.fifo_taken == core.out.fifo_end:
        core.out.fifo_taken = 0
        core.out.fifo_end = 0
    pool_unpin(&core.pool)
    return 0


cdef int out_flush(Core* core) noexcept nogil:
    """Send what waits, as far as the link takes it; 0, 1: the link is full, or a negative errno: it is broken."""
    cdef int result = 0
    if core.out.count:
        result = send_batch(core)
    if result == 0 and core.out.fifo_end != core.out.fifo_taken:
        out_push(core, core.out.fifo + core.out.fifo_taken, core.out.fifo_end - core.out.fifo_taken)
        core.out.fifo_taken = core.out.fifo_end
        result = send_batch(core)
    return result
