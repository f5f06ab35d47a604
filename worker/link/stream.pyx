# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A stream link: QEMU's framing, a 4-byte big-endian length before each frame, and VPNKit's, a 2-byte
little-endian one.

One `read` takes up to 256 KiB; what is left of a frame at the end is moved to the front of the buffer for the next.
When a worker takes over a link that another died on, the stream may start in the middle of a frame: `find_boundary`
looks for a length that fits with the VM's MAC behind it, and a second such frame after it, within MAX_RESYNC bytes.
What goes out leaves in one `writev` for each batch. Neither is a system call of sockets alone, for the link may be a
pair of pipes; it is non-blocking, and Python ignores SIGPIPE.
"""

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, memmove
from posix.uio cimport iovec
from posix.unistd cimport read

from worker.capture cimport FROM_GUEST, capture_frame
from worker.core cimport (
    LINK_BROKEN, LINK_DRAINED, LINK_EOF, LINK_GARBLED, LINK_MORE, MAX_FRAME, RX_READ, count, count_by,
)
from worker.counters cimport (
    C_LINK_GARBLED, C_LINK_RESYNC_BYTES, C_LINK_RX_BYTES, C_LINK_RX_FRAMES, C_SYSCALLS_LINK_RECV, C_SYSCALLS_LINK_SEND,
)
from worker.dispatch cimport batch_done, frame_from_guest
from worker.hostio cimport writev
from worker.link.output cimport out_batch_sent, out_block
from worker.readiness cimport READY_IN, ready_rearm
from worker.wire._cursor cimport load_u32
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN

cdef enum:
    MAX_RESYNC = 1048576
    IOV_LIMIT = 1024  # of one writev (IOV_MAX on Linux)


cdef inline size_t frame_length(const Core* core, const uint8_t* p) noexcept nogil:
    if core.prefix_len == 4:
        return load_u32(p)
    return p[0] | (<size_t>p[1] << 8)


cdef bint plausible(const Core* core, const uint8_t* p, size_t left) noexcept nogil:
    """Whether a frame of this VM may start here. Its MAC tells; of one that is not known, only frames to the gateway
    and to all count, as those to other VMs could be anything."""
    cdef size_t length
    if left < <size_t>core.prefix_len + ETHERNET_HEADER_LEN:
        return False
    length = frame_length(core, p)
    if length < ETHERNET_HEADER_LEN or length > core.mtu + ETHERNET_HEADER_LEN + 4:
        return False
    p += core.prefix_len
    if core.guest_mac_known:
        return memcmp(p + 6, core.guest_mac, 6) == 0
    return p[0] & 1 or memcmp(p, core.gateway_mac, 6) == 0


cdef size_t find_boundary(Core* core) noexcept nogil:
    """How many bytes to skip until a frame starts; everything at hand if none is found in it."""
    cdef size_t at
    cdef size_t following
    for at in range(core.rx_have):
        if not plausible(core, core.rx + at, core.rx_have - at):
            continue
        following = at + core.prefix_len + frame_length(core, core.rx + at)
        if following == core.rx_have or (
            following < core.rx_have and plausible(core, core.rx + following, core.rx_have - following)
        ):
            core.resync = False
            return at
    # keep what might be the head of a frame whose rest is still to come
    at = core.mtu + ETHERNET_HEADER_LEN + 8
    return core.rx_have - at if core.rx_have > at else 0


cdef bint resynchronize(Core* core) noexcept nogil:
    """Skip to the next frame; False: none within the limit."""
    cdef size_t skipped = find_boundary(core)
    count_by(core, C_LINK_RESYNC_BYTES, skipped)
    core.resync_skipped += <unsigned int>skipped
    core.rx_have -= skipped
    memmove(core.rx, core.rx + skipped, core.rx_have)
    return core.resync_skipped <= MAX_RESYNC


cdef int take_frames(Core* core, unsigned int* detail) noexcept nogil:
    """Handle every whole frame of the buffer; LINK_DRAINED, or LINK_GARBLED with the impossible length."""
    cdef size_t at = 0
    cdef size_t left
    cdef size_t length
    while True:
        left = core.rx_have - at
        if left < <size_t>core.prefix_len:
            break
        length = frame_length(core, core.rx + at)
        if length > MAX_FRAME:
            batch_done(core)
            count(core, C_LINK_GARBLED)
            detail[0] = <unsigned int>length
            return LINK_GARBLED
        if length > left - core.prefix_len:
            break
        count(core, C_LINK_RX_FRAMES)
        count_by(core, C_LINK_RX_BYTES, length)
        capture_frame(core, FROM_GUEST, core.rx + at + core.prefix_len, length)
        frame_from_guest(core, core.rx + at + core.prefix_len, length)
        at += core.prefix_len + length
    batch_done(core)
    core.rx_have -= at
    if core.rx_have and at:
        memmove(core.rx, core.rx + at, core.rx_have)
    return LINK_DRAINED


cdef int stream_receive_bytes(Core* core, const uint8_t* data, size_t length, unsigned int* detail) noexcept nogil:
    """Take bytes that were read before the engine had the link, at most RX_READ; before any `stream_receive`."""
    memcpy(core.rx, data, length)
    core.rx_have = length
    return take_frames(core, detail)


cdef int stream_receive(Core* core, unsigned int* detail) noexcept nogil:
    """Read once and handle every whole frame; a `LinkResult`. `detail`: the errno, or the impossible length."""
    cdef int result
    cdef ssize_t n = read(core.link_fd, core.rx + core.rx_have, RX_READ)
    count(core, C_SYSCALLS_LINK_RECV)
    if n == 0:
        return LINK_EOF
    if n < 0:
        if errno == EAGAIN:
            ready_rearm(&core.ready, core.link_fd, READY_IN)
            return LINK_DRAINED
        detail[0] = errno
        return LINK_MORE if errno == EINTR else LINK_BROKEN
    core.rx_have += n
    if core.resync:
        if not resynchronize(core):
            count(core, C_LINK_GARBLED)
            return LINK_GARBLED
        if core.resync:
            return LINK_MORE
    result = take_frames(core, detail)
    if result != LINK_DRAINED:
        return result
    # a short read has emptied the socket; its end, if it came with it, is told by another event
    if n == RX_READ:
        return LINK_MORE
    ready_rearm(&core.ready, core.link_fd, READY_IN)
    return LINK_DRAINED


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


cdef int stream_send(Core* core) noexcept nogil:
    """Send the batch; 0, 1: the link is full, or a negative errno: it is broken."""
    cdef ssize_t n
    cdef int pieces
    cdef int until
    while core.out.sent < core.out.count:
        pieces = core.out.count - core.out.sent
        if pieces > IOV_LIMIT:
            pieces = IOV_LIMIT
        until = core.out.sent + pieces
        n = writev(core.link_out_fd, core.out.iov + core.out.sent, pieces)
        count(core, C_SYSCALLS_LINK_SEND)
        if n >= 0:
            advance(core, n)
            if core.out.sent < until:
                return out_block(core)  # a stream that takes a part is full
        elif errno == EAGAIN or errno == ENOBUFS:
            return out_block(core)
        elif errno != EINTR:
            return -errno
    out_batch_sent(core)
    return 0
