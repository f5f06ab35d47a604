# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A link of messages: each frame is a message of a SEQPACKET socket (BESS, User Mode Linux) or a datagram of a unix
socket that is connected to the guest's (vfkit, QEMU's `dgram`).

One `recvmmsg` takes as many messages as the receive buffer has places for, each large enough for a frame of the link's
MTU; a longer one is malformed. One `sendmmsg` sends a batch, each frame gathered from its pieces. There is no frame
boundary to lose: a worker takes over such a link where the last one left it.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EMSGSIZE, ENOBUFS, errno
from libc.stdlib cimport calloc, free
from posix.uio cimport iovec

from worker.capture cimport FROM_GUEST, capture_frame
from worker.core cimport (
    LINK_BROKEN, LINK_DRAINED, LINK_EOF, LINK_MORE, OUT_SLOTS, RX_SIZE, MessageBatch, count, count_by,
)
from worker.counters cimport (
    C_ETHERNET_MALFORMED, C_LINK_RX_BYTES, C_LINK_RX_FRAMES, C_LINK_TX_DROPPED, C_SYSCALLS_LINK_RECV,
    C_SYSCALLS_LINK_SEND,
)
from worker.dispatch cimport batch_done, frame_from_guest
from worker.hostio cimport MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, mmsghdr, recvmmsg, sendmmsg
from worker.link.output cimport out_batch_sent, out_block
from worker.readiness cimport READY_IN, ready_rearm
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN

cdef enum:
    MAX_MESSAGES = 256  # in one recvmmsg
    VLAN_TAG_LEN = 4
    PLACE_ALIGNMENT = 64  # a cache line


cdef int messages_init(Core* core) noexcept nogil:
    """0, or -1: no memory. The MTU and the receive buffer are set."""
    cdef size_t largest = core.mtu + ETHERNET_HEADER_LEN + VLAN_TAG_LEN
    cdef MessageBatch* batch = <MessageBatch*>calloc(1, sizeof(MessageBatch))
    cdef unsigned int i
    core.messages = batch
    if batch == NULL:
        return -1
    batch.stride = (largest + PLACE_ALIGNMENT - 1) & ~<size_t>(PLACE_ALIGNMENT - 1)
    batch.capacity = min(<unsigned int>(RX_SIZE // batch.stride), <unsigned int>MAX_MESSAGES)
    batch.received = <mmsghdr*>calloc(batch.capacity, sizeof(mmsghdr))
    batch.places = <iovec*>calloc(batch.capacity, sizeof(iovec))
    batch.sending = <mmsghdr*>calloc(OUT_SLOTS, sizeof(mmsghdr))
    if batch.received == NULL or batch.places == NULL or batch.sending == NULL:
        return -1
    for i in range(batch.capacity):
        batch.places[i].iov_base = core.rx + i * batch.stride
        batch.places[i].iov_len = batch.stride
        batch.received[i].msg_hdr.msg_iov = &batch.places[i]
        batch.received[i].msg_hdr.msg_iovlen = 1
    return 0


cdef void messages_close(Core* core) noexcept nogil:
    if core.messages == NULL:
        return
    free(core.messages.received)
    free(core.messages.places)
    free(core.messages.sending)
    free(core.messages)
    core.messages = NULL


cdef int receive_failed(Core* core, unsigned int* detail) noexcept nogil:
    if errno == EAGAIN:
        if core.link_ended:
            return LINK_EOF  # a datagram socket has no other end
        ready_rearm(&core.ready, core.link_fd, READY_IN)
        return LINK_DRAINED
    if errno == ECONNRESET:
        core.link_ended = True  # told before the messages that the guest sent last: take those
        return LINK_MORE
    detail[0] = errno
    return LINK_MORE if errno == EINTR else LINK_BROKEN


cdef int messages_receive(Core* core, unsigned int* detail) noexcept nogil:
    """Take one batch of messages and handle each as a frame; a `LinkResult`. `detail`: the errno."""
    cdef MessageBatch* batch = core.messages
    cdef bint at_end = False
    cdef size_t length
    cdef int i
    cdef int n = recvmmsg(core.link_fd, batch.received, batch.capacity, MSG_DONTWAIT, NULL)
    count(core, C_SYSCALLS_LINK_RECV)
    if n < 0:
        return receive_failed(core, detail)
    for i in range(n):
        length = batch.received[i].msg_len
        if length == 0 and core.link_ended:
            at_end = True
            break
        count(core, C_LINK_RX_FRAMES)
        count_by(core, C_LINK_RX_BYTES, length)
        if batch.received[i].msg_hdr.msg_flags & MSG_TRUNC:
            count(core, C_ETHERNET_MALFORMED)
        else:
            capture_frame(core, FROM_GUEST, core.rx + i * batch.stride, length)
            frame_from_guest(core, core.rx + i * batch.stride, length)
    batch_done(core)
    if at_end:
        return LINK_EOF
    if <unsigned int>n == batch.capacity:
        return LINK_MORE
    ready_rearm(&core.ready, core.link_fd, READY_IN)
    return LINK_DRAINED


cdef void prepare_batch(Core* core) noexcept nogil:
    """Point the headers of the messages not sent yet at their frames' pieces."""
    cdef mmsghdr* message
    cdef int following
    cdef int i
    for i in range(core.out.sent, core.out.frame_count):
        message = &core.messages.sending[i]
        following = core.out.first_piece[i + 1] if i + 1 < core.out.frame_count else core.out.count
        message.msg_hdr.msg_iov = core.out.iov + core.out.first_piece[i]
        message.msg_hdr.msg_iovlen = following - core.out.first_piece[i]


cdef int messages_send(Core* core) noexcept nogil:
    """Send the batch; 0, 1: the link is full, or a negative errno: it is broken."""
    cdef int n
    prepare_batch(core)
    while core.out.sent < core.out.frame_count:
        n = sendmmsg(
            core.link_fd, core.messages.sending + core.out.sent, core.out.frame_count - core.out.sent,
            MSG_DONTWAIT | MSG_NOSIGNAL,
        )
        count(core, C_SYSCALLS_LINK_SEND)
        if n > 0:
            core.out.sent += n
            if core.out.sent < core.out.frame_count:
                return out_block(core)  # full; were it another error, the next attempt meets it first
        elif errno == EAGAIN or errno == ENOBUFS:
            return out_block(core)
        elif errno == EMSGSIZE:
            count(core, C_LINK_TX_DROPPED)  # longer than the socket's buffer: it would never go
            core.out.sent += 1
        elif errno != EINTR:
            return -errno
    out_batch_sent(core)
    return 0
