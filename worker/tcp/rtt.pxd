"""Round-trip time and the retransmission timeout (RFC 6298); one segment is timed at a time, never a repeated one
(Karn's algorithm, section 3), for which there are timestamps (RFC 7323 section 4)."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from worker.tcp.tcb cimport RTO_MAX, RTO_MIN, Tcb, ts_clock
from worker.wire.seqnum cimport seq_diff, seq_gt
from worker.wire.tcp cimport TcpView


cdef inline void rtt_start(Tcb* t, uint32_t seq, int64_t now) noexcept nogil:
    if not t.rtt_timing:
        t.rtt_timing = True
        t.rtt_seq = seq
        t.rtt_start = now


cdef inline void rtt_sample(Tcb* t, int64_t elapsed) noexcept nogil:
    """RFC 6298 2.2 and 2.3."""
    cdef int32_t sample = <int32_t>(1 if elapsed < 1 else (elapsed if elapsed < RTO_MAX else RTO_MAX))
    cdef int32_t delta
    cdef uint32_t rto
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


cdef inline void rtt_on_ack(Tcb* t, const TcpView* s, int64_t now) noexcept nogil:
    """New data was acknowledged. What was repeated is measured by its timestamp (RFC 7323 4) or not at all, and without
    a measurement a timeout that was backed off stays so (RFC 6298 5)."""
    cdef int32_t echoed
    if t.rtt_timing and seq_gt(s.ack, t.rtt_seq):
        t.rtt_timing = False
        rtt_sample(t, now - t.rtt_start)
    elif t.backoff and t.ts_ok and s.has_ts:
        echoed = seq_diff(ts_clock(t, now), s.ts_ecr)
        if 0 <= echoed < RTO_MAX // 1000:
            rtt_sample(t, <int64_t>echoed * 1000)
