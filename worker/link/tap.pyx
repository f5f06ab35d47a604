# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A tap device as the link: each read and each write is one frame (Documentation/networking/tuntap.rst of Linux).

With offloads a `virtio_net_hdr` lies before every frame, and a frame may hold up to 64 KiB of TCP, whose checksum
nobody has computed and nobody has to: the guest's packet never was on a wire. So one system call carries what would be
45 frames at an MTU of 1,500. Without them (an old kernel) frames are plain.

What is read stays where it is until the batch is done, one frame behind the other. A write never waits: the guest's
stack takes the frame at once, or loses it.
"""

from libc.errno cimport EAGAIN, EINTR, ENODEV, errno
from libc.stdint cimport uint8_t
from posix.unistd cimport read

from worker.capture cimport FROM_GUEST, capture_frame
from worker.core cimport LINK_BROKEN, LINK_DRAINED, LINK_EOF, LINK_MORE, RX_SIZE, count, count_by
from worker.counters cimport (
    C_ETHERNET_MALFORMED, C_LINK_RX_BYTES, C_LINK_RX_FRAMES, C_LINK_TX_DROPPED, C_SYSCALLS_LINK_RECV,
    C_SYSCALLS_LINK_SEND,
)
from worker.dispatch cimport batch_done, frame_from_guest
from worker.hostio cimport writev
from worker.link.output cimport out_batch_sent, out_block
from worker.link.vnet cimport (
    VNET_DATA_VALID, VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_HEADER_LEN, VNET_NEEDS_CSUM,
)
from worker.readiness cimport READY_IN, ready_rearm

cdef extern from *:
    """
    #include <errno.h>
    #ifndef EBADFD
    #define EBADFD ENODEV
    #endif
    """
    enum:
        EBADFD  # only Linux has it, and taps of this kind

cdef enum:
    MAX_READ = 65600  # the longest IP packet, its Ethernet header with a tag, and what is in front
    FRAMES_PER_TURN = 256
    ALIGNMENT = 64  # a cache line


cdef void take_frame(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    count(core, C_LINK_RX_FRAMES)
    if core.offloads:
        if length < VNET_HEADER_LEN or (frame[1] != VNET_GSO_NONE and frame[1] != VNET_GSO_TCPV4):
            count(core, C_ETHERNET_MALFORMED)
            return
        core.checksum_is_known = (frame[0] & (VNET_NEEDS_CSUM | VNET_DATA_VALID)) != 0
        frame += VNET_HEADER_LEN
        length -= VNET_HEADER_LEN
    count_by(core, C_LINK_RX_BYTES, length)
    capture_frame(core, FROM_GUEST, frame, length)
    frame_from_guest(core, frame, length)
    core.checksum_is_known = False


cdef int tap_receive(Core* core, unsigned int* detail) noexcept nogil:
    """Read what waits, as far as the receive buffer goes, and handle each frame; a `LinkResult`.

    `detail`: the errno.
    """
    cdef size_t at = 0
    cdef ssize_t n = 0
    cdef int error = 0
    cdef int frames = 0
    while frames < FRAMES_PER_TURN and at <= RX_SIZE - MAX_READ:
        n = read(core.link_fd, core.rx + at, MAX_READ)
        error = errno
        count(core, C_SYSCALLS_LINK_RECV)
        if n <= 0:
            break
        take_frame(core, core.rx + at, n)
        at += (n + ALIGNMENT - 1) & ~<size_t>(ALIGNMENT - 1)
        frames += 1
    batch_done(core)
    if n > 0:
        return LINK_MORE
    if n == 0:
        return LINK_EOF
    if error == EAGAIN:
        ready_rearm(&core.ready, core.link_fd, READY_IN)
        return LINK_DRAINED
    detail[0] = ENODEV if error == EBADFD else error  # the device was taken away
    return LINK_MORE if error == EINTR else LINK_BROKEN


cdef int tap_send(Core* core) noexcept nogil:
    """Write the batch; 0, 1: the link is full, or a negative errno: it is gone."""
    cdef int first
    cdef int following
    while core.out.sent < core.out.frame_count:
        first = core.out.first_piece[core.out.sent]
        following = core.out.count
        if core.out.sent + 1 < core.out.frame_count:
            following = core.out.first_piece[core.out.sent + 1]
        count(core, C_SYSCALLS_LINK_SEND)
        if writev(core.link_fd, core.out.iov + first, following - first) < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                return out_block(core)
            if errno == EBADFD:
                return -ENODEV
            count(core, C_LINK_TX_DROPPED)  # the device is switched off, or memory is short
        core.out.sent += 1
    out_batch_sent(core)
    return 0
