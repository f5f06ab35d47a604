"""Which of the bytes we sent the guest holds beyond the cumulative acknowledgment (RFC 6675)."""

from libc.stdint cimport uint32_t

from worker.tcp.tcb cimport Tcb, snd_end
from worker.wire.seqnum cimport seq_lt
from worker.wire.tcp cimport SeqRange, TcpView


cdef bint sack_update(Tcb* t, const TcpView* s) noexcept nogil
cdef bint is_dsack(const TcpView* s) noexcept nogil
cdef void sack_prune(Tcb* t) noexcept nogil
cdef uint32_t lost_edge(const Tcb* t) noexcept nogil
cdef uint32_t pipe(const Tcb* t) noexcept nogil
cdef bint next_hole(const Tcb* t, bint any_hole, uint32_t* start, uint32_t* end) noexcept nogil
cdef int range_insert(SeqRange* ranges, int* count, int limit, uint32_t start, uint32_t end) noexcept nogil


cdef inline uint32_t send_room(const Tcb* t) noexcept nogil:
    """How many more bytes the guest's window and the congestion window let out, over what is already in the ring.

    What the guest holds behind a gap fills the ring, but not the congestion window.
    """
    cdef uint32_t unsent = snd_end(t) - t.snd_nxt if seq_lt(t.snd_nxt, snd_end(t)) else 0
    cdef uint32_t taken = pipe(t) + unsent
    cdef uint32_t in_cwnd = t.cwnd - taken if t.cwnd > taken else 0
    cdef uint32_t in_window = t.snd_wnd - t.snd.used if t.snd_wnd > t.snd.used else 0
    return in_cwnd if in_cwnd < in_window else in_window
