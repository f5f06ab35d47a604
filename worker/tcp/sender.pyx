# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Segments to the guest (RFC 9293 sections 3.7, 3.8), retransmission (RFC 6298, RFC 6582, RFC 6675).

Theory of operation. The send ring holds every byte from `snd_una` on: those in flight and those that wait.
`tcp_next_segment` is called until it says no; it prefers SYN, then retransmissions of what counts as lost, then new
data as far as the guest's window and the congestion window let it, then FIN, and last a bare acknowledgment, which
every other segment carries along. Silly windows are avoided on both sides (RFC 9293 3.8.6.2); there is no Nagle delay,
for the bytes come from a host socket that has had its own.

To a link that cuts frames into segments itself (generic segmentation offload) new data goes out in as many full
segments at once as both windows let. Loss and congestion are reckoned in bytes, so nothing else has to know;
retransmissions are single segments.
"""

from libc.stdint cimport int64_t, uint32_t

from worker.tcp.congestion cimport cc_enter_loss
from worker.tcp.rtt cimport rtt_start
from worker.tcp.scoreboard cimport next_hole, pipe
from worker.tcp.tcb cimport (
    ACKS_CARRIED, CA_OPEN, CA_RECOVERY, CALL_TIMEOUT, CLOSE_WAIT, ESTABLISHED, EV_CLOSED, EV_TIMEOUT, FIN_WAIT_1,
    KEEPALIVE_INTERVAL, LAST_ACK, MAX_KEEPALIVES, MAX_RETRANSMITS, MAX_SYN_RETRANSMITS, RTO_MAX, SYN_RECEIVED,
    SYN_SENT, TIME_WAIT, in_flight, is_synchronized, rcv_undelivered, set_state, snd_end,
)
from worker.wire.seqnum cimport seq_gt, seq_lt, seq_max
from worker.wire.tcp cimport TCP_ACK, TCP_FIN, TCP_PSH, TCP_SYN


cdef uint32_t advertise(Tcb* t) noexcept nogil:
    """The window field; the right edge never moves back (RFC 9293 3.8.6), except that the field is rounded down.

    Rounded up, small segments would creep past the cap for ever. What was promised before is still taken: `rcv_adv` is
    the furthest edge ever told (RFC 7323 2.4).
    """
    cdef uint32_t held = rcv_undelivered(t)
    cdef uint32_t room = t.rcv_cap - held if t.rcv_cap > held else 0
    cdef uint32_t edge = t.rcv_nxt + room
    cdef uint32_t field
    cdef uint32_t step = t.rcv_cap >> 1 if t.rcv_cap >> 1 < t.rcv_mss else t.rcv_mss
    if seq_lt(edge, t.rcv_adv + step):
        # not worth telling (RFC 9293 3.8.6.2.2), or it would take back what was promised
        edge = t.rcv_adv if seq_gt(t.rcv_adv, t.rcv_nxt) else t.rcv_nxt
    field = (edge - t.rcv_nxt) >> t.rcv_wscale
    if field > 65535:
        field = 65535
    t.rcv_adv = seq_max(t.rcv_adv, t.rcv_nxt + (field << t.rcv_wscale))
    return field


cdef void finish(Tcb* t, OutSegment* out, int64_t now) noexcept nogil:
    """What every segment of a synchronized connection carries."""
    out.ack = t.rcv_nxt
    out.window = advertise(t)
    t.last_ack_sent = t.rcv_nxt
    if out.length == 0:
        t.acks_carried = 0
    elif t.ack_waits and t.acks_carried < ACKS_CARRIED:
        t.acks_carried += 1
    t.ack_now = False
    t.ack_waits = False
    t.ack_at = 0
    if t.rexmit_at == 0 and in_flight(t):
        t.rexmit_at = now + t.rto


cdef bint next_syn(Tcb* t, int64_t now, OutSegment* out) noexcept nogil:
    cdef uint32_t window = t.rcv_cap if t.rcv_cap < 65535 else 65535
    t.send_syn = False
    out.seq = t.iss
    out.ack = t.rcv_nxt
    out.flags = TCP_SYN
    out.window = window
    if t.state == SYN_RECEIVED:
        out.flags = TCP_SYN | TCP_ACK
        t.rcv_adv = t.rcv_nxt + window
        t.last_ack_sent = t.rcv_nxt
    if t.snd_nxt == t.iss:
        t.snd_nxt = t.iss + 1
        rtt_start(t, t.iss, now)
        if t.state == SYN_SENT:
            t.idle_at = now + CALL_TIMEOUT
    if t.rexmit_at == 0:
        t.rexmit_at = now + t.rto
    return True


cdef bint next_retransmission(Tcb* t, bint any_hole, int64_t now, OutSegment* out) noexcept nogil:
    """The next segment of what counts as lost, or of any hole, if the congestion window has room for it."""
    cdef uint32_t start
    cdef uint32_t end
    cdef uint32_t data_end = snd_end(t)
    if not t.rexmit_first and pipe(t) + t.mss > t.cwnd:
        return False
    if not next_hole(t, any_hole, &start, &end):
        t.rexmit_first = False
        return False
    t.rexmit_first = False
    if end - start > t.mss:
        end = start + t.mss
    t.high_rxt = end
    t.rtt_timing = False  # Karn: a timed segment may now be acknowledged by its copy
    out.seq = start
    out.flags = TCP_ACK
    if t.fin_sent and end == t.snd_nxt:
        out.flags |= TCP_FIN
        end = data_end
    out.offset = start - t.snd_una
    out.length = end - start
    if end == data_end and out.length:
        out.flags |= TCP_PSH
    out.retransmission = True
    finish(t, out, now)
    return True


cdef void send_fin(Tcb* t, OutSegment* out) noexcept nogil:
    out.flags |= TCP_FIN
    t.fin_sent = True
    t.snd_nxt += 1
    if t.state == ESTABLISHED:
        set_state(t, FIN_WAIT_1)
        t.idle_at = 0
    elif t.state == CLOSE_WAIT:
        set_state(t, LAST_ACK)
        t.idle_at = 0


cdef int64_t persist_interval(const Tcb* t) noexcept nogil:
    """Until the next look at a window that holds everything up (RFC 9293 3.8.6.1)."""
    cdef int64_t interval = <int64_t>t.rto << t.backoff
    return interval if interval < RTO_MAX else RTO_MAX


cdef bint next_data(Tcb* t, int64_t now, OutSegment* out) noexcept nogil:
    """New data or FIN, as far as both windows let it."""
    cdef uint32_t waiting
    cdef uint32_t n
    cdef uint32_t flight = in_flight(t)
    cdef uint32_t room
    cdef uint32_t piped
    if t.fin_sent:
        return False
    waiting = snd_end(t) - t.snd_nxt
    n = waiting if waiting < t.segment_max else t.segment_max
    if n:
        room = t.snd_wnd - flight if t.snd_wnd > flight else 0
        if t.ca_state != CA_OPEN:
            piped = pipe(t)
        else:
            piped = flight
        if t.cwnd <= piped:
            room = 0
        elif t.cwnd - piped < room:
            room = t.cwnd - piped
        if room < n:
            if room >= t.mss:
                n = room - room % t.mss
            elif room == 0 or (room < (t.snd_wnd_max >> 1) and not t.probe):
                if flight == 0 and t.persist_at == 0:
                    t.persist_at = now + persist_interval(t)
                return False
            else:
                n = room
                t.probe = False  # the timer overrides the avoidance of silly windows (RFC 9293 3.8.6.2.1)
    elif not t.fin_queued:
        return False
    out.seq = t.snd_nxt
    out.flags = TCP_ACK
    out.offset = t.snd_nxt - t.snd_una
    out.length = n
    t.snd_nxt += n
    t.persist_at = 0
    if flight == 0:
        t.backoff = 0  # it counted probes
    rtt_start(t, out.seq, now)
    if n == waiting:
        if n:
            out.flags |= TCP_PSH
        if t.fin_queued:
            send_fin(t, out)
    finish(t, out, now)
    return True


cdef bint tcp_next_segment(Tcb* t, int64_t now, OutSegment* out) noexcept nogil:
    """Fill `out` with the segment to send next; False: nothing to send now."""
    out.length = 0
    out.offset = 0
    out.retransmission = False
    if t.send_syn:
        return next_syn(t, now, out)
    if not is_synchronized(t):
        return False
    if t.state != TIME_WAIT:
        if t.ca_state != CA_OPEN and next_retransmission(t, False, now, out):
            return True
        if (t.snd.used or t.fin_queued) and next_data(t, now, out):
            return True
        if t.ca_state == CA_RECOVERY and next_retransmission(t, True, now, out):
            return True
    if t.ack_now or t.probe or t.acks_due:
        out.seq = t.snd_nxt
        out.flags = TCP_ACK
        if t.probe:
            out.seq = t.snd_una - 1  # outside the guest's window: it must answer (RFC 9293 3.8.4)
            t.probe = False
        elif t.acks_due:
            t.acks_due -= 1
        finish(t, out, now)
        return True
    return False


cdef int tcp_on_timer(Tcb* t, int64_t now) noexcept nogil:
    """Act on the deadlines that have passed; `Event` bits."""
    cdef int limit
    if t.rexmit_at != 0 and now >= t.rexmit_at:
        limit = MAX_RETRANSMITS if is_synchronized(t) else MAX_SYN_RETRANSMITS
        if t.backoff >= limit:
            return EV_TIMEOUT
        t.backoff += 1
        t.rto = t.rto * 2 if t.rto < RTO_MAX / 2 else RTO_MAX
        t.rexmit_at = now + t.rto
        t.rtt_timing = False
        if t.state == SYN_SENT or t.state == SYN_RECEIVED:
            t.send_syn = True
        else:
            cc_enter_loss(t)
    if t.ack_at != 0 and now >= t.ack_at:
        t.ack_at = 0
        t.ack_now = True
        if t.rcv_nxt - t.last_ack_sent >= <uint32_t>(2 * t.rcv_mss):
            t.ack_every = (t.rcv_nxt - t.last_ack_sent) >> 1  # the guest waits for it: half of its window, then
    if t.persist_at != 0 and now >= t.persist_at:
        if t.keepalives >= MAX_RETRANSMITS:
            return EV_TIMEOUT
        t.keepalives += 1
        if t.backoff < MAX_RETRANSMITS:
            t.backoff += 1
        t.persist_at = now + persist_interval(t)
        t.probe = True
    if t.idle_at != 0 and now >= t.idle_at:
        if t.state == TIME_WAIT:
            return EV_CLOSED
        if t.state == SYN_SENT or t.keepalives >= MAX_KEEPALIVES:
            return EV_TIMEOUT
        t.keepalives += 1
        t.idle_at = now + KEEPALIVE_INTERVAL
        t.probe = True
    return 0
