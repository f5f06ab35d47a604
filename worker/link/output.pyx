# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""What goes out to the guest, until its link takes it.

Two sources share one system call: the fifo, where frames are written whole (replies, datagrams, ICMP errors, RSTs), and
the batch, where TCP puts a header slot and points at the payload in its ring. When the link takes only a part, what
already waits in the batch goes out before anything else; the rings' pool is pinned meanwhile. TCP waits in its flows,
so nothing of it is ever dropped; the fifo is bounded, and what does not fit is counted in `link.tx_dropped`.

On a stream a frame lies behind its length and nobody asks any more where it begins; for other links the batch keeps the
first piece of each frame, and the fifo a mark before it. Sending is each kind of link's own (`link.kinds`).
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove
from posix.uio cimport iovec

from worker.capture cimport TO_GUEST, capture_frame
from worker.core cimport (
    FIFO_MARK_LEN, LINK_PREFIX_MAX, LINK_STREAM, OUT_BATCH_BYTES, OUT_FIFO_SIZE, OUT_SLOT_LEN, OUT_SLOTS, TAG_LINK,
    TAG_LINK_OUT, Core, count, count_by, token_of,
)
from worker.counters cimport C_LINK_BLOCKED, C_LINK_TX_BYTES, C_LINK_TX_DROPPED, C_LINK_TX_FRAMES
from worker.link.vnet cimport put_vnet_plain
from worker.readiness cimport READY_EDGE, READY_IN, READY_OUT, ready_add, ready_modify, ready_remove
from worker.ring cimport pool_unpin
from worker.wire._cursor cimport load_u32, store_u32

cdef enum:
    OUT_IOVS = OUT_SLOTS * 3 + 1  # each segment: a header and at most two pieces of a ring; and all of the fifo


cdef int out_init(Core* core) noexcept nogil:
    """0, or -1: no memory."""
    core.out.iov = <iovec*>malloc(OUT_IOVS * sizeof(iovec))
    core.out.slots = <uint8_t*>malloc(OUT_SLOTS * OUT_SLOT_LEN)
    core.out.fifo = <uint8_t*>malloc(OUT_FIFO_SIZE)
    core.out.first_piece = <int*>malloc(OUT_SLOTS * sizeof(int))
    if core.out.iov == NULL or core.out.slots == NULL or core.out.fifo == NULL or core.out.first_piece == NULL:
        return -1
    return 0


cdef void out_close(Core* core) noexcept nogil:
    free(core.out.iov)
    free(core.out.slots)
    free(core.out.fifo)
    free(core.out.first_piece)
    core.out.iov = NULL
    core.out.slots = NULL
    core.out.fifo = NULL
    core.out.first_piece = NULL


cdef void put_prefix(const Core* core, uint8_t* p, size_t frame_len) noexcept nogil:
    """Write the length that lies before a frame on the link, where one does."""
    if core.prefix_len == 4:
        store_u32(p, <unsigned int>frame_len)
    elif core.prefix_len == 2:
        p[0] = <uint8_t>frame_len
        p[1] = <uint8_t>(frame_len >> 8)


cdef size_t out_fifo_room(const Core* core) noexcept nogil:
    """How long a frame may be that still fits."""
    cdef size_t left = OUT_FIFO_SIZE - core.out.fifo_end
    return left - LINK_PREFIX_MAX - FIFO_MARK_LEN if left > LINK_PREFIX_MAX + FIFO_MARK_LEN else 0


cdef inline int mark_len(const Core* core) noexcept nogil:
    return 0 if core.link_kind == LINK_STREAM else FIFO_MARK_LEN


cdef uint8_t* out_reserve(Core* core, size_t frame_len) noexcept nogil:
    """Where to write a frame of that length; NULL (and counted): the guest does not keep up.

    Before it, on a link with offloads, lies a header for a frame without; it may be written anew.
    """
    if core.out.fifo_taken and core.out.count == 0:
        memmove(core.out.fifo, core.out.fifo + core.out.fifo_taken, core.out.fifo_end - core.out.fifo_taken)
        core.out.fifo_end -= core.out.fifo_taken
        core.out.fifo_taken = 0
    if frame_len > out_fifo_room(core):
        count(core, C_LINK_TX_DROPPED)
        return NULL
    if core.offloads:
        put_vnet_plain(core.out.fifo + core.out.fifo_end + mark_len(core))
    return core.out.fifo + core.out.fifo_end + mark_len(core) + core.prefix_len


cdef void out_commit(Core* core, size_t frame_len) noexcept nogil:
    """The frame that was reserved is written; it may have become shorter."""
    cdef uint8_t* p = core.out.fifo + core.out.fifo_end
    if core.link_kind != LINK_STREAM:
        store_u32(p, <unsigned int>(core.prefix_len + frame_len))
    put_prefix(core, p + mark_len(core), frame_len)
    capture_frame(core, TO_GUEST, p + mark_len(core) + core.prefix_len, frame_len)
    core.out.fifo_end += mark_len(core) + core.prefix_len + frame_len
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
    return core.out.blocked or core.out.frame_count == OUT_SLOTS or core.out.bytes >= OUT_BATCH_BYTES


cdef uint8_t* out_slot(Core* core) noexcept nogil:
    """Where to write the headers of the next segment of the batch, which must not be full, and before them what a link
    with offloads wants to know."""
    return core.out.slots + core.out.frame_count * OUT_SLOT_LEN + LINK_PREFIX_MAX


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
    out_add(core, frame - core.prefix_len, header_len + core.prefix_len)
    count(core, C_LINK_TX_FRAMES)
    count_by(core, C_LINK_TX_BYTES, header_len + payload_len)


cdef void out_add(Core* core, const uint8_t* data, size_t length) noexcept nogil:
    """Begin a frame of the batch, which must not be full, with memory that has all that the link wants before it. On a
    stream it may be several frames."""
    core.out.first_piece[core.out.frame_count] = core.out.count
    core.out.frame_count += 1
    out_push(core, data, length)


cdef bint out_pending(const Core* core) noexcept nogil:
    """Something waits to be sent."""
    return core.out.count != 0 or core.out.fifo_end != core.out.fifo_taken


cdef int out_block(Core* core) noexcept nogil:
    """The link is full; 1."""
    if not core.out.blocked:
        count(core, C_LINK_BLOCKED)
    core.out.blocked = True
    core.out.blocked_at = core.now
    return 1


cdef void out_watch(Core* core, bint on) noexcept nogil:
    """Be told when a full link takes more. Off while it is not full: each read of the guest's would wake us."""
    if core.out.watched == on:
        return
    core.out.watched = on
    if core.link_out_fd == core.link_fd:
        ready_modify(
            &core.ready, core.link_fd, token_of(TAG_LINK, NULL), READY_IN | READY_EDGE | (READY_OUT if on else 0)
        )
    elif on:
        ready_add(&core.ready, core.link_out_fd, token_of(TAG_LINK_OUT, NULL), READY_OUT)
    else:
        ready_remove(&core.ready, core.link_out_fd)


cdef void out_take_fifo(Core* core) noexcept nogil:
    """Make a batch, the last being sent, of what waits in the fifo: on a stream all of it, else OUT_SLOTS frames."""
    cdef uint8_t* p
    if core.link_kind == LINK_STREAM:
        out_push(core, core.out.fifo + core.out.fifo_taken, core.out.fifo_end - core.out.fifo_taken)
        core.out.fifo_taken = core.out.fifo_end
        return
    while core.out.fifo_taken != core.out.fifo_end and core.out.frame_count < OUT_SLOTS:
        p = core.out.fifo + core.out.fifo_taken
        core.out.first_piece[core.out.frame_count] = core.out.count
        core.out.frame_count += 1
        out_push(core, p + FIFO_MARK_LEN, load_u32(p))
        core.out.fifo_taken += FIFO_MARK_LEN + load_u32(p)


cdef void out_batch_sent(Core* core) noexcept nogil:
    """The link has taken the whole batch."""
    core.out.blocked = False
    core.out.count = 0
    core.out.sent = 0
    core.out.bytes = 0
    core.out.frame_count = 0
    if core.out.fifo_taken == core.out.fifo_end:
        core.out.fifo_taken = 0
        core.out.fifo_end = 0
    pool_unpin(&core.pool)
