# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Several datagrams of a host socket in one system call (recvmmsg(2), sendmmsg(2))."""

from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.uio cimport iovec

from worker.hostio cimport (
    MSG_DONTWAIT, MSG_NOSIGNAL, mmsghdr, moorage_forget_interface, msghdr, name_length, recvmmsg, sendmmsg, sendmsg,
)
from worker.wire.udp cimport UDP_HEADER_LEN, UDP_MAX_PAYLOAD


cdef int datagrams_init(DatagramBatch* batch) noexcept nogil:
    """0, or -1: no memory. The slots become resident as they are used."""
    batch.count = 0
    batch.memory = <uint8_t*>malloc(DATAGRAM_BATCH * DATAGRAM_SLOT)
    return 0 if batch.memory != NULL else -1


cdef void datagrams_close(DatagramBatch* batch) noexcept nogil:
    free(batch.memory)
    batch.memory = NULL


cdef int datagrams_receive(DatagramBatch* batch, int fd) noexcept nogil:
    """Fill the batch with what waits; how many, or a negative errno. Fewer than DATAGRAM_BATCH: nothing is left."""
    cdef mmsghdr messages[DATAGRAM_BATCH]
    cdef iovec pieces[DATAGRAM_BATCH]
    cdef int i
    cdef int n
    memset(messages, 0, sizeof(messages))
    for i in range(DATAGRAM_BATCH):
        pieces[i].iov_base = batch.memory + i * DATAGRAM_SLOT + UDP_HEADER_LEN
        pieces[i].iov_len = UDP_MAX_PAYLOAD
        messages[i].msg_hdr.msg_iov = &pieces[i]
        messages[i].msg_hdr.msg_iovlen = 1
        messages[i].msg_hdr.msg_name = &batch.names[i]
        messages[i].msg_hdr.msg_namelen = sizeof(batch.names[i])
        messages[i].msg_hdr.msg_control = batch.ancillary[i].data
        messages[i].msg_hdr.msg_controllen = sizeof(batch.ancillary[i].data)
    n = recvmmsg(fd, messages, DATAGRAM_BATCH, MSG_DONTWAIT, NULL)
    if n < 0:
        batch.count = 0
        return -errno
    for i in range(n):
        batch.lengths[i] = messages[i].msg_len
        batch.ancillary[i].length = messages[i].msg_hdr.msg_controllen
        if batch.ancillary[i].length:
            moorage_forget_interface(&messages[i].msg_hdr)
    batch.count = n
    return n


cdef int datagrams_send(const DatagramBatch* batch, int fd, int first) noexcept nogil:
    """Send the datagrams from `first` on; how many were sent, or a negative errno for the first of them."""
    cdef mmsghdr messages[DATAGRAM_BATCH]
    cdef iovec pieces[DATAGRAM_BATCH]
    cdef int i
    cdef int k = 0
    cdef int n
    for i in range(first, batch.count):
        memset(&messages[k], 0, sizeof(mmsghdr))
        pieces[k].iov_base = <void*>batch.payloads[i]
        pieces[k].iov_len = batch.lengths[i]
        messages[k].msg_hdr.msg_iov = &pieces[k]
        messages[k].msg_hdr.msg_iovlen = 1
        messages[k].msg_hdr.msg_name = <void*>&batch.names[i]
        messages[k].msg_hdr.msg_namelen = name_length(&batch.names[i])
        k += 1
    n = sendmmsg(fd, messages, k, MSG_DONTWAIT | MSG_NOSIGNAL)
    return n if n >= 0 else -errno


cdef bint datagram_answer(
    int fd, const uint8_t* payload, size_t length, const SocketName* to, const Ancillary* ancillary
) noexcept nogil:
    """Send one datagram from the address that the one before it was sent to; False: the socket does not take it."""
    cdef msghdr message
    cdef iovec piece
    memset(&message, 0, sizeof(message))
    piece.iov_base = <void*>payload
    piece.iov_len = length
    message.msg_iov = &piece
    message.msg_iovlen = 1
    message.msg_name = <void*>to
    message.msg_namelen = name_length(to)
    if ancillary.length:
        message.msg_control = <void*>ancillary.data
        message.msg_controllen = ancillary.length
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0
