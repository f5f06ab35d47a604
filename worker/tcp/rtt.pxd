"""Round-trip time and the retransmission timeout (RFC 6298); one segment is timed at a time, never a repeated one
(Karn's algorithm, section 3)."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from worker.tcp.tcb cimport RTO_MAX, RTO_MIN, Tcb
from worker.wire.seqnum cimport seq_gt


cdef inline void rtt_start(Tcb* t, uint32_t seq, int64_t now) noexcept nogil:
    if not t.rtt_timing:
        t.rtt_timing = True
        t.rtt_seq = seq
        t.rtt_start = now


cdef inline void rtt_on_ack(Tcb* t, uint32_t ack, int64_t now) noexcept nogil:
    """RFC 6298 2.2 and 2.3; without a measurement a timeout that was backed off stays so (section 5)."""
    cdef int64_t elapsed = now - t.rtt_start
    cdef int32_t sample
    cdef int32_t delta
    cdef uint32_t rto
    if not t.rtt_timing or not seq_gt(ack, t.rtt_seq):
        return
    t.rtt_timing = False
    sample = <int32_t>(1 if elapsed < 1 else (elapsed if elapsed < RTO_MAX else RTO_MAX))
    if t.srtt == 0:
        t.srtt = sample
        t.rttvar = sample >> 1
    else:
        delta = sample - t.srtt
        t.srtt += delta >> 3
        if t.srtt < 1:
            t.srtt = 1
        t.rttvar += ((delta if delta >= 0 else -delta) - t.rttvar) >> 2
    rto = <uint32_t>(t.srtt + 4 * t.rttvar)
    t.rto = RTO_MIN if rto < RTO_MIN else (RTO_MAX if rto > RTO_MAX else rto)
