"""Congestion control: slow start, congestion avoidance and NewReno (RFC 5681, RFC 6582), window of 10 (RFC 6928)."""

from libc.stdint cimport uint32_t

from worker.tcp.tcb cimport CA_LOSS, CA_OPEN, CA_RECOVERY, DUP_THRESHOLD, INITIAL_WINDOW, Tcb, in_flight


cdef inline void cc_start(Tcb* t) noexcept nogil:
    t.cwnd = INITIAL_WINDOW * t.mss


cdef inline void cc_on_ack(Tcb* t, uint32_t acked) noexcept nogil:
    """New data was acknowledged outside fast recovery (RFC 5681 3.1)."""
    if t.cwnd >= t.snd_wnd_max + t.mss:
        return  # the guest's window is the limit: growth would never be tested
    if t.cwnd < t.ssthresh:
        t.cwnd += acked if acked < 2 * t.mss or t.ca_state == CA_OPEN else 2 * t.mss
        return
    t.cwnd_acked += acked
    if t.cwnd_acked >= t.cwnd:
        t.cwnd_acked -= t.cwnd
        t.cwnd += t.mss


cdef inline uint32_t cc_half_flight(const Tcb* t) noexcept nogil:
    """The slow start threshold after a loss (RFC 5681 equation 4)."""
    cdef uint32_t half = in_flight(t) >> 1
    return half if half > 2 * <uint32_t>t.mss else 2 * <uint32_t>t.mss


cdef inline void cc_enter_recovery(Tcb* t) noexcept nogil:
    """Fast retransmit (RFC 6582 3.2 step 2, RFC 6675 5)."""
    t.ssthresh = cc_half_flight(t)
    t.cwnd = t.ssthresh + (0 if t.sack_ok else DUP_THRESHOLD * t.mss)
    t.cwnd_acked = 0
    t.ca_state = CA_RECOVERY
    t.recover = t.snd_nxt
    t.high_rxt = t.snd_una
    t.rexmit_first = True


cdef inline void cc_enter_loss(Tcb* t) noexcept nogil:
    """Retransmission timeout (RFC 5681 3.1): everything outstanding counts as lost."""
    if t.ca_state == CA_OPEN:  # a recovery has set it already, and what is outstanding has grown since
        t.ssthresh = cc_half_flight(t)
    t.cwnd = t.mss
    t.cwnd_acked = 0
    t.ca_state = CA_LOSS
    t.recover = t.snd_nxt
    t.high_rxt = t.snd_una
    t.rexmit_first = True
    t.sacked_count = 0
    t.dupacks = 0


cdef inline void cc_leave(Tcb* t) noexcept nogil:
    """All that was outstanding at the loss is acknowledged (RFC 6582 3.2 step 3, full acknowledgment)."""
    cdef uint32_t flight = in_flight(t)
    if t.ca_state == CA_RECOVERY:
        flight = (flight if flight > t.mss else t.mss) + t.mss
        t.cwnd = flight if flight < t.ssthresh else t.ssthresh
    t.ca_state = CA_OPEN
    t.dupacks = 0
    t.sacked_count = 0
    t.rexmit_first = False
