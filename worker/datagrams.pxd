"""Several datagrams of a host socket in one system call."""

from libc.stdint cimport uint8_t, uint64_t

from worker.hostio cimport SocketName

cdef enum:
    DATAGRAM_BATCH = 16
    DATAGRAM_SLOT = 65536  # 8 bytes for a UDP header, then the payload


cdef struct Ancillary:
    # What comes beside a datagram of a forwarded port: the address it was sent to, from which the answer must come.
    size_t length
    uint64_t data[6]  # room for one cmsghdr with an in6_pktinfo


cdef struct DatagramBatch:
    uint8_t* memory  # DATAGRAM_BATCH slots
    int count
    size_t lengths[DATAGRAM_BATCH]
    SocketName names[DATAGRAM_BATCH]
    Ancillary ancillary[DATAGRAM_BATCH]
    # of datagrams to send: where their payload lies
    const uint8_t* payloads[DATAGRAM_BATCH]


cdef int datagrams_init(DatagramBatch* batch) noexcept nogil
cdef void datagrams_close(DatagramBatch* batch) noexcept nogil
cdef int datagrams_receive(DatagramBatch* batch, int fd) noexcept nogil
cdef int datagrams_send(const DatagramBatch* batch, int fd, int first) noexcept nogil
cdef bint datagram_answer(
    int fd, const uint8_t* payload, size_t length, const SocketName* to, const Ancillary* ancillary
) noexcept nogil


cdef inline uint8_t* datagram_payload(const DatagramBatch* batch, int i) noexcept nogil:
    return batch.memory + i * DATAGRAM_SLOT + 8
