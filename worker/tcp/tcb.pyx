# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""The state of one TCP connection (RFC 9293 section 3.3.1): making it and letting it go; `tcb.pxd` describes it."""

from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from worker.ring cimport RingPool, ring_release


cdef void tcp_init(Tcb* t, uint32_t iss, uint16_t mss, uint32_t rcv_cap, uint16_t gso_max) noexcept nogil:
    """A closed connection. `mss`: payload bytes that the MTU allows; `rcv_cap`: bytes of receive window; `gso_max`:
    payload bytes of one frame to a link that cuts it into segments, else 0."""
    memset(t, 0, sizeof(Tcb))
    t.iss = iss
    t.snd_una = iss
    t.snd_nxt = iss
    t.recover = iss
    t.mss = mss
    t.rcv_mss = mss
    t.gso_max = gso_max
    t.segment_max = mss
    t.rcv_cap = rcv_cap
    t.rto = RTO_INITIAL
    t.ssthresh = 0x7fffffff


cdef void tcp_release(Tcb* t, RingPool* pool) noexcept nogil:
    """Give back all memory of the connection."""
    ring_release(pool, &t.snd)
    ring_release(pool, &t.rcv)
    free(t.sacked)
    free(t.ooo)
    t.sacked = NULL
    t.ooo = NULL
    t.sacked_count = 0
    t.ooo_count = 0


cdef void set_state(Tcb* t, int state) noexcept nogil:
    """The one place where a connection changes its state."""
    t.state = <unsigned char>state
