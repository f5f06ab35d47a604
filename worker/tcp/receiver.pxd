"""Segments from the guest: `tcp.receiver` takes them in (RFC 9293 section 3.10)."""

from libc.stdint cimport int64_t

from worker.ring cimport RingPool
from worker.tcp.tcb cimport Delivery, Tcb
from worker.wire.tcp cimport SeqRange, TcpView


cdef void tcp_hold_syn(Tcb* t, const TcpView* s, int64_t now) noexcept nogil
cdef void tcp_open(Tcb* t) noexcept nogil
cdef void tcp_connect(Tcb* t) noexcept nogil
cdef int tcp_receive(Tcb* t, const TcpView* s, int64_t now, RingPool* pool, Delivery* out) noexcept nogil
cdef void tcp_delivered(Tcb* t, RingPool* pool, unsigned int sliced, unsigned int from_ring) noexcept nogil
cdef int sack_blocks(const Tcb* t, SeqRange* out, int limit) noexcept nogil
