"""What waits for room in a peer's socket."""

from posix.uio cimport iovec

from worker.core cimport Core, Peer


cdef bint backlog_hold(Core* core, Peer* peer, const iovec* pieces, int n) noexcept nogil
cdef void backlog_send(Core* core, Peer* peer) noexcept nogil
cdef void backlog_forget(Core* core, Peer* peer) noexcept nogil
