"""Memory shared with a peer, for what is long."""

from libc.stdint cimport uint8_t
from posix.uio cimport iovec

from worker.core cimport Core, Peer

cdef enum:
    LANE_HEAD = 256  # bytes of a frame that are copied to be looked at; more than all headers of a TCP segment
    LANE_REFERENCE_LEN = 12
    LANE_ENTRY_LEN = LANE_HEAD + 8  # those, and where the rest lies


cdef bint lane_send(Core* core, Peer* peer, const iovec* pieces, int n) noexcept nogil
cdef bint lane_accept(Core* core, Peer* peer, int fd) noexcept nogil
cdef ssize_t lane_fetch(Core* core, Peer* peer, uint8_t* place) noexcept nogil
cdef const uint8_t* lane_rest(const uint8_t* entry) noexcept nogil
cdef void lanes_release(Core* core) noexcept nogil
cdef void lanes_close(Core* core, Peer* peer) noexcept nogil
