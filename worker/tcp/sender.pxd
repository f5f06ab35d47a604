"""Segments to the guest: `tcp.sender` says which one is next, `tcp.timers` what a deadline brings."""

from libc.stdint cimport int64_t

from worker.tcp.tcb cimport OutSegment, Tcb


cdef bint tcp_next_segment(Tcb* t, int64_t now, OutSegment* out) noexcept nogil
cdef int tcp_on_timer(Tcb* t, int64_t now) noexcept nogil
