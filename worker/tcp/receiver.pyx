# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Segments from the guest (RFC 9293 section 3.10.7), with timestamps and PAWS (RFC 7323), SACK (RFC 2018), and the
stricter treatment of RST and SYN of RFC 5961.

Theory of operation. A guest's SYN is held in LISTEN (`tcp_hold_syn`) until the host connection is up; then `tcp_open`
lets the sender answer it. From there on `tcp_receive` does what the RFC's "SEGMENT ARRIVES" says: cut the segment to
the window, handle RST and SYN, take the acknowledgment, then the payload, then FIN. It changes only the `Tcb`; what
the caller must do about it comes back as `Event` bits. Old duplicates are cut to nothing and answered by an ACK, but
their acknowledgment field still counts, as in BSD.

Left out: urgent data is plain data (RFC 6093 advises against it); ECN bits are ignored; a SYN that crosses ours is not
answered; a segment without the timestamp that was agreed on is taken all the same, as Linux does (RFC 7323 3.2 says to
drop it).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport malloc

from worker.ring cimport RingPool, ring_discard, ring_release, ring_reserve, ring_write_at
from worker.tcp.congestion cimport cc_enter_recovery, cc_leave, cc_on_ack, cc_start
from worker.tcp.rtt cimport rtt_on_ack
from worker.tcp.scoreboard cimport is_dsack, lost_edge, range_insert, sack_prune, sack_update
from worker.tcp.tcb cimport (
    ACKS_CARRIED, CA_LOSS, CA_OPEN, CA_RECOVERY, CLOSED, CLOSE_WAIT, CLOSING, DELAYED_ACK, DUP_THRESHOLD,
    ESTABLISHED, EV_ACKED, EV_BAD_ACK, EV_CLOSED, EV_DATA, EV_DROPPED, EV_DSACK, EV_ESTABLISHED, EV_FIN, EV_RECOVERY,
    EV_REOPEN, EV_RESET, EV_RING, FIN_WAIT_1, FIN_WAIT_2, LAST_ACK, LISTEN, MAX_OOO, PATIENT_ACK, PAWS_MAX_AGE,
    RCV_WSCALE, SYN_RECEIVED, SYN_SENT, TIME_WAIT, TIME_WAIT_PERIOD, in_flight, may_receive, set_state, tcp_touch,
)
from worker.wire.seqnum cimport seq_ge, seq_gt, seq_le, seq_lt
from worker.wire.tcp cimport TCP_ACK, TCP_DEFAULT_MSS, TCP_FIN, TCP_RST, TCP_SYN

cdef enum:
    MIN_MSS = 64
    # A guest that announces less is not believed (it would make the gateway send a header per byte).
    TS_OPTION_LEN = 12
    WINDOW_ENOUGH = 32768  # bytes still promised (and two segments): the guest is not waiting for more


cdef void take_syn(Tcb* t, const TcpView* s, int64_t now) noexcept nogil:
    """The peer's sequence number and options."""
    cdef unsigned int mss = s.mss if s.mss else TCP_DEFAULT_MSS
    t.irs = s.seq
    t.rcv_nxt = s.seq + 1
    t.rcv_user = t.rcv_nxt
    t.rcv_adv = t.rcv_nxt
    t.last_ack_sent = t.rcv_nxt
    t.ts_ok = s.has_ts
    if s.has_ts:
        t.ts_recent = s.ts_val
        t.ts_recent_at = now
    t.sack_ok = s.sack_permitted
    if s.wscale >= 0:
        t.snd_wscale = <uint8_t>s.wscale
        t.rcv_wscale = RCV_WSCALE
    else:
        t.snd_wscale = 0
        t.rcv_wscale = 0
        if t.rcv_cap > 65535:
            t.rcv_cap = 65535
    if mss < t.mss:
        t.mss = <unsigned short>(mss if mss > MIN_MSS else MIN_MSS)
    if t.ts_ok:
        t.mss -= TS_OPTION_LEN
    t.segment_max = t.gso_max - t.gso_max % t.mss if t.gso_max > t.mss else t.mss
    t.snd_wnd = s.window
    t.snd_wnd_max = s.window
    t.snd_wl1 = s.seq
    t.snd_wl2 = s.ack
    cc_start(t)


cdef void tcp_hold_syn(Tcb* t, const TcpView* s, int64_t now) noexcept nogil:
    """A guest opens a connection: keep what its SYN says until `tcp_open`, or forget the connection."""
    take_syn(t, s, now)
    set_state(t, LISTEN)


cdef void tcp_open(Tcb* t) noexcept nogil:
    """The host connection is up: the SYN may be answered."""
    set_state(t, SYN_RECEIVED)
    t.send_syn = True


cdef void tcp_connect(Tcb* t) noexcept nogil:
    """Open a connection to the guest."""
    set_state(t, SYN_SENT)
    t.send_syn = True


cdef int receive_syn_sent(Tcb* t, const TcpView* s, int64_t now) noexcept nogil:
    """RFC 9293 3.10.7.3."""
    cdef bint acceptable = (s.flags & TCP_ACK) != 0 and s.ack == t.snd_nxt and t.snd_nxt != t.iss
    if s.flags & TCP_ACK and not acceptable:
        return 0 if s.flags & TCP_RST else EV_BAD_ACK
    if s.flags & TCP_RST:
        return EV_RESET if acceptable else 0
    if not (s.flags & TCP_SYN) or not acceptable:
        return 0
    take_syn(t, s, now)
    t.snd_una = s.ack
    t.rexmit_at = 0
    rtt_on_ack(t, s, now)
    t.backoff = 0
    set_state(t, ESTABLISHED)
    tcp_touch(t, now)
    t.ack_now = True
    return EV_ESTABLISHED | EV_ACKED


cdef void fin_is_acked(Tcb* t, int64_t now) noexcept nogil:
    if t.state == FIN_WAIT_1:
        set_state(t, FIN_WAIT_2)
        tcp_touch(t, now)
    elif t.state == CLOSING:
        enter_time_wait(t, now)
    elif t.state == LAST_ACK:
        set_state(t, CLOSED)


cdef void enter_time_wait(Tcb* t, int64_t now) noexcept nogil:
    set_state(t, TIME_WAIT)
    t.rexmit_at = 0
    t.persist_at = 0
    t.idle_at = now + TIME_WAIT_PERIOD


cdef void new_ack(Tcb* t, const TcpView* s, int64_t now, RingPool* pool) noexcept nogil:
    """The cumulative acknowledgment moved."""
    cdef uint32_t acked = s.ack - t.snd_una
    cdef bint fin = t.fin_sent and s.ack == t.snd_nxt
    ring_discard(&t.snd, acked - fin)
    if t.snd.used == 0:
        ring_release(pool, &t.snd)
    t.snd_una = s.ack
    rtt_on_ack(t, s, now)
    t.backoff = 0
    t.rexmit_at = now + t.rto if in_flight(t) else 0
    sack_prune(t)
    if t.ca_state == CA_OPEN:
        t.dupacks = 0
        t.recover = s.ack - 1
        cc_on_ack(t, acked)
    elif seq_ge(s.ack, t.recover):
        cc_leave(t)
    elif t.ca_state == CA_LOSS:
        cc_on_ack(t, acked)
    elif not t.sack_ok:  # partial acknowledgment (RFC 6582 3.2 step 3)
        t.high_rxt = s.ack
        t.rexmit_first = True
        t.cwnd = (t.cwnd - acked if t.cwnd > acked + t.mss else t.mss) + t.mss
    if fin:
        fin_is_acked(t, now)


cdef bint duplicate_ack(Tcb* t, bint news) noexcept nogil:
    """RFC 5681 3.2, RFC 6675 5; duplicates that an earlier recovery left over do not count (RFC 6582 3.2 step 1).
    True: a recovery begins."""
    if t.dupacks < 255:
        t.dupacks += 1
    if t.ca_state == CA_OPEN:
        if (news and seq_gt(lost_edge(t), t.snd_una)) or (
            t.dupacks >= DUP_THRESHOLD and (news or seq_gt(t.snd_una, t.recover))
        ):
            cc_enter_recovery(t)
            return True
    elif t.ca_state == CA_RECOVERY and not t.sack_ok and t.cwnd <= t.snd_wnd_max:
        t.cwnd += t.mss
    return False


cdef int take_ack(Tcb* t, const TcpView* s, uint32_t length, int64_t now, RingPool* pool) noexcept nogil:
    """RFC 9293 3.10.7.4, fifth check; -1: drop the segment."""
    cdef uint32_t window = s.window << t.snd_wscale
    cdef int events = 0
    cdef bint news = False
    if seq_gt(s.ack, t.snd_nxt):
        t.ack_now = True
        return -1
    if seq_lt(s.ack, t.snd_una):
        return 0
    if t.sack_ok and s.sack_count:
        news = sack_update(t, s)
        events = EV_DSACK if is_dsack(s) else 0
    if s.ack != t.snd_una:
        new_ack(t, s, now, pool)
        events |= EV_ACKED
    elif news or (
        not t.sack_ok and in_flight(t) and length == 0 and window == t.snd_wnd and not s.flags & TCP_FIN
    ):
        events |= EV_ACKED | (EV_RECOVERY if duplicate_ack(t, news) else 0)
    if seq_lt(t.snd_wl1, s.seq) or (t.snd_wl1 == s.seq and seq_le(t.snd_wl2, s.ack)):
        if window > t.snd_wnd:
            events |= EV_ACKED
            t.persist_at = 0
        t.snd_wnd = window
        t.snd_wl1 = s.seq
        t.snd_wl2 = s.ack
        if window == 0 and in_flight(t):
            t.backoff = 0  # a guest that says so is not gone, whatever is in flight (RFC 9293 3.8.6)
        if window > t.snd_wnd_max:
            t.snd_wnd_max = window
    return events


cdef void close_gaps(Tcb* t) noexcept nogil:
    """Bytes behind a gap that has just been filled become bytes in order."""
    cdef int gone = 0
    cdef int i
    while gone < t.ooo_count and seq_le(t.ooo[gone].start, t.rcv_nxt):
        if seq_gt(t.ooo[gone].end, t.rcv_nxt):
            t.rcv.used += t.ooo[gone].end - t.rcv_nxt
            t.rcv_nxt = t.ooo[gone].end
        gone += 1
    if gone:
        for i in range(gone, t.ooo_count):
            t.ooo[i - gone] = t.ooo[i]
        t.ooo_count -= gone
        t.ooo_last = t.ooo_last - gone if t.ooo_last >= gone else 0


cdef void acknowledge_later(Tcb* t, int64_t now) noexcept nogil:
    """An answer of the host may carry the acknowledgment (RFC 9293 3.8.6.3)."""
    t.ack_waits = True
    t.ack_patient = t.acks_carried == ACKS_CARRIED
    t.ack_at = now + (PATIENT_ACK if t.ack_patient else DELAYED_ACK)


cdef uint32_t ack_quota(const Tcb* t) noexcept nogil:
    """Bytes in order that are acknowledged without delay: two segments, and more as a transfer goes on.

    An acknowledgment costs the guest more than the segment it lets out, and the fewer there are, the larger the bursts
    its kernel makes in one go. `ack_every` learns how many it can do without: it grows with each acknowledgment that
    came by the quota, up to `ack_limit`, and one that came by the timer while much was waiting says that the guest's
    congestion window is smaller (`tcp_on_timer`). A guest's BBR takes a wait for the rate of the path: one that has the
    link for itself must not be made to wait at all.
    """
    cdef uint32_t quota = t.ack_every if t.ack_every < t.ack_limit else t.ack_limit
    return quota if quota > <uint32_t>(2 * t.rcv_mss) else <uint32_t>(2 * t.rcv_mss)


cdef void acknowledge_data(Tcb* t, uint32_t length, int64_t now) noexcept nogil:
    """Of a segment in order, with nothing beyond it: `rcv_nxt` is still its first byte."""
    cdef uint32_t quota = ack_quota(t)
    if t.rcv_nxt + length - t.last_ack_sent >= quota:
        t.ack_every = quota + (quota >> 5)
        t.ack_now = True
    elif not t.ack_waits:
        acknowledge_later(t, now)


cdef int take_data(
    Tcb* t, const uint8_t* data, uint32_t seq, uint32_t length, int64_t now, RingPool* pool, Delivery* out
) noexcept nogil:
    """RFC 9293 3.10.7.4, seventh check; the segment has been cut to the window."""
    cdef int index
    if length > t.rcv_mss and not t.gso_max:
        t.rcv_mss = <unsigned short>length
    if seq == t.rcv_nxt and t.ooo_count == 0:
        acknowledge_data(t, length, now)
    else:
        t.ack_now = True
    if seq == t.rcv_nxt and t.rcv.used == 0 and t.ooo_count == 0:
        t.rcv_nxt += length
        out.data = data
        out.length = length
        return EV_DATA
    if not ring_reserve(pool, &t.rcv, seq - t.rcv_user + length):
        return EV_DROPPED
    if seq == t.rcv_nxt:
        ring_write_at(&t.rcv, seq - t.rcv_user, data, length)
        t.rcv_nxt += length
        t.rcv.used += length
        close_gaps(t)
        return EV_RING
    if t.ooo == NULL:
        t.ooo = <SeqRange*>malloc(MAX_OOO * sizeof(SeqRange))
        if t.ooo == NULL:
            return EV_DROPPED
    index = range_insert(t.ooo, &t.ooo_count, MAX_OOO, seq, seq + length)
    if index < 0:
        return EV_DROPPED
    ring_write_at(&t.rcv, seq - t.rcv_user, data, length)
    t.ooo_last = index
    if t.acks_due < (1 if t.sack_ok else DUP_THRESHOLD):
        t.acks_due += 1  # a bare one: data carries no SACK blocks, and counts as no duplicate
    return 0


cdef int take_fin(Tcb* t, int64_t now) noexcept nogil:
    """RFC 9293 3.10.7.4, eighth check."""
    t.fin_received = True
    t.rcv_nxt += 1
    if t.state == ESTABLISHED and not t.ack_now and not t.ack_waits:
        acknowledge_later(t, now)  # most hosts close now as well: their FIN will carry it
    else:
        t.ack_now = True
    if t.state == ESTABLISHED:
        set_state(t, CLOSE_WAIT)
    elif t.state == FIN_WAIT_1:
        set_state(t, CLOSING)
    else:
        enter_time_wait(t, now)
    return EV_FIN


cdef bint is_newer(const Tcb* t, const TcpView* s) noexcept nogil:
    """Whether a SYN in TIME-WAIT can be no duplicate of the old connection's (RFC 9293 3.6.1, RFC 6191 2)."""
    return seq_gt(s.seq, t.rcv_nxt) or (t.ts_ok and s.has_ts and seq_gt(s.ts_val, t.ts_recent))


cdef int tcp_receive(Tcb* t, const TcpView* s, int64_t now, RingPool* pool, Delivery* out) noexcept nogil:
    """Take in a segment whose checksum is right; `Event` bits."""
    cdef uint32_t seq = s.seq
    cdef uint32_t length = s.length
    cdef uint32_t excess
    cdef const uint8_t* data = s.payload
    cdef bint fin = (s.flags & TCP_FIN) != 0
    cdef int events = 0
    cdef int acked
    if t.state == SYN_SENT:
        return receive_syn_sent(t, s, now)
    if t.state == LISTEN:
        return EV_RESET if s.flags & TCP_RST and seq == t.rcv_nxt else 0
    if s.flags & TCP_SYN:
        if t.state == SYN_RECEIVED and seq == t.irs:
            t.send_syn = True
        elif t.state == TIME_WAIT and is_newer(t, s) and not (s.flags & (TCP_ACK | TCP_RST)):
            return EV_REOPEN
        else:
            t.ack_now = True  # challenge ACK, RFC 5961 4.2
        return 0
    if t.ts_ok and s.has_ts and not (s.flags & TCP_RST):
        if seq_lt(s.ts_val, t.ts_recent) and now - t.ts_recent_at < <int64_t>PAWS_MAX_AGE:
            t.ack_now = True  # RFC 7323 5.3, R1
            return 0
        if seq_le(seq, t.last_ack_sent):
            t.ts_recent = s.ts_val
            t.ts_recent_at = now
    if seq_lt(seq, t.rcv_nxt):
        excess = t.rcv_nxt - seq
        if s.flags & TCP_RST:
            return 0
        t.ack_now = True
        if excess > length:
            if fin and t.state == TIME_WAIT:
                t.idle_at = now + TIME_WAIT_PERIOD
            length = 0
            fin = False
        else:
            data += excess
            length -= excess
        seq = t.rcv_nxt
    if seq_gt(seq, t.rcv_adv):
        if not s.flags & TCP_RST:  # RFC 5961 3.2: silence
            t.ack_now = True
        return EV_DROPPED
    if length > t.rcv_adv - seq:
        length = t.rcv_adv - seq
        fin = False
        t.ack_now = True
        events = EV_DROPPED
    if s.flags & TCP_RST:
        if seq == t.rcv_nxt:
            return EV_RESET
        t.ack_now = True  # RFC 5961 3.2
        return 0
    if not (s.flags & TCP_ACK):
        return 0
    if t.state == SYN_RECEIVED:
        if s.ack != t.snd_nxt or t.snd_nxt == t.iss:
            return EV_BAD_ACK
        t.snd_una = s.ack
        t.rexmit_at = 0
        rtt_on_ack(t, s, now)
        t.backoff = 0
        set_state(t, ESTABLISHED)
        events |= EV_ESTABLISHED
        t.snd_wl1 = s.seq - 1
    tcp_touch(t, now)
    acked = take_ack(t, s, length, now, pool)
    if acked < 0:
        return events
    events |= acked
    if t.state == CLOSED:
        return events | EV_CLOSED
    if not may_receive(t):
        return events
    if length:
        events |= take_data(t, data, seq, length, now, pool, out)
    if fin and seq + length == t.rcv_nxt and not events & EV_DROPPED:
        events |= take_fin(t, now)
    return events


cdef void tcp_delivered(Tcb* t, RingPool* pool, unsigned int sliced, unsigned int from_ring) noexcept nogil:
    """The host socket took `sliced` bytes of delivered slices, then `from_ring` bytes of the receive ring."""
    cdef uint32_t edge
    t.rcv_user += sliced + from_ring
    if t.rcv.data != NULL:
        t.rcv.used -= from_ring
        t.rcv.start = (t.rcv.start + sliced + from_ring) & (t.rcv.size - 1)
        if t.rcv.used == 0 and t.ooo_count == 0:
            ring_release(pool, &t.rcv)
    # a window update only when it is worth a segment (RFC 9293 3.8.6.2.2)
    edge = t.rcv_user + t.rcv_cap
    if t.rcv_adv - t.rcv_nxt >= <uint32_t>(WINDOW_ENOUGH + 2 * t.rcv_mss):
        return
    if seq_gt(edge, t.rcv_adv) and edge - t.rcv_adv >= (t.rcv_cap >> 1) and may_receive(t):
        t.ack_now = True


cdef int sack_blocks(const Tcb* t, SeqRange* out, int limit) noexcept nogil:
    """The ranges held beyond the next expected byte, the newest first (RFC 2018 section 4); how many."""
    cdef int n = 0
    cdef int i
    if t.ooo_count == 0:
        return 0
    out[0] = t.ooo[t.ooo_last]
    n = 1
    for i in range(t.ooo_count):
        if n == limit:
            break
        if i != t.ooo_last:
            out[n] = t.ooo[i]
            n += 1
    return n
