"""Which of the bytes we sent the guest holds beyond the cumulative acknowledgment (RFC 6675)."""

from libc.stdint cimport uint32_t

from worker.tcp.tcb cimport Tcb
from worker.wire.tcp cimport SeqRange, TcpView


cdef bint sack_update(Tcb* t, const TcpView* s) noexcept nogil
cdef void sack_prune(Tcb* t) noexcept nogil
cdef uint32_t lost_edge(const Tcb* t) noexcept nogil
cdef uint32_t pipe(const Tcb* t) noexcept nogil
cdef bint next_hole(const Tcb* t, bint any_hole, uint32_t* start, uint32_t* end) noexcept nogil
cdef int range_insert(SeqRange* ranges, int* count, int limit, uint32_t start, uint32_t end) noexcept nogil
