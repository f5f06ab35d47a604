"""The state of one TCP connection between the guest and the gateway (RFC 9293 section 3.3.1), and what drives it.

Everything here is without I/O. `tcp.receiver` takes a segment and says what happened as `Event` bits; `tcp.sender` says
which segment to send next, as a header's fields and a range of the send ring; `tcp.timers` acts on deadlines. Time is
always an argument: microseconds of a monotonic clock.

The receive ring holds the bytes from `rcv_user` on: first those in order that the host socket has not taken yet
(up to `rcv_nxt`), then, behind gaps, those of `ooo`. Bytes that arrive in order while the ring is empty never enter
it: they are handed to the caller where they lie.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from worker.ring cimport Ring, RingPool
from worker.wire.seqnum cimport seq_diff, seq_gt, seq_lt, seq_max
from worker.wire.tcp cimport SeqRange

cdef enum TcpState:
    CLOSED = 0
    LISTEN = 1  # the guest's SYN is held until the host connection is up
    SYN_SENT = 2
    SYN_RECEIVED = 3
    ESTABLISHED = 4
    FIN_WAIT_1 = 5
    FIN_WAIT_2 = 6
    CLOSE_WAIT = 7
    CLOSING = 8
    LAST_ACK = 9
    TIME_WAIT = 10

cdef enum Event:
    # What a segment or a timer brought about.
    EV_DATA = 1  # a slice of payload is next in order (see Delivery)
    EV_RING = 2  # the receive ring has bytes in order
    EV_ESTABLISHED = 4
    EV_FIN = 8  # the guest has sent everything, and all of it is here
    EV_RESET = 16  # the guest reset the connection, or refused it
    EV_ACKED = 32  # the send ring has more room, or the window opened
    EV_CLOSED = 64  # nothing left to do: forget the connection
    EV_TIMEOUT = 128  # the guest does not answer any more
    EV_BAD_ACK = 512  # acknowledges what was never sent: to be answered by RST
    EV_DROPPED = 1024  # out of memory or out of window: counted
    EV_RECOVERY = 2048  # a fast recovery begins
    EV_DSACK = 4096  # the guest had some bytes twice (RFC 2883)
    EV_REOPEN = 256  # in TIME-WAIT a new SYN came for the same addresses and ports

cdef enum CongestionState:
    CA_OPEN = 0
    CA_RECOVERY = 1  # fast recovery (RFC 6582, RFC 6675)
    CA_LOSS = 2  # after a retransmission timeout

cdef enum:
    MAX_OOO = 16
    MAX_SACKED = 32
    US = 1000000
    RTO_MIN = 200000  # us; RFC 6298 2.4 says 1 s, Linux 200 ms
    RTO_INITIAL = 1000000  # us; RFC 6298 2.1
    RTO_MAX = 60000000  # us; RFC 6298 2.5
    MAX_RETRANSMITS = 15  # RFC 9293 3.8.3 (R2): about 9 minutes, so that a paused VM keeps its connections
    MAX_SYN_RETRANSMITS = 3  # of our answer: 15 s
    CALL_TIMEOUT = 10000000  # us for a guest to answer our SYN, then a forwarded connection is reset; gvproxy's
    DELAYED_ACK = 1000  # us; RFC 9293 3.8.6.3 allows 500 ms, but a guest with Nagle's algorithm waits for it
    PATIENT_ACK = 40000  # us; Linux's; where answers come anyway, a short timer costs more than the segments
    ACKS_CARRIED = 3  # by data, one after the other: the connection is one of requests and answers
    KEEPALIVE_IDLE = 7200000000  # us; RFC 9293 3.8.4
    KEEPALIVE_IDLE_HALF_CLOSED = 120000000  # us; ours: a guest that is gone leaves nothing behind
    KEEPALIVE_INTERVAL = 75000000  # us
    MAX_KEEPALIVES = 9
    TIME_WAIT_PERIOD = 10000000  # us; 2 MSL, where a segment lives no longer than a local queue
    PAWS_MAX_AGE = 2073600000000  # us; 24 days, RFC 7323 5.5
    RCV_WSCALE = 7
    INITIAL_WINDOW = 10  # segments; RFC 6928
    DUP_THRESHOLD = 3  # RFC 5681 3.2


cdef struct Tcb:
    uint8_t state
    uint8_t ca_state
    bint ts_ok
    bint sack_ok
    bint ack_now
    bint ack_waits  # an acknowledgment is due, but may wait for data to carry it
    bint ack_patient  # it may wait for PATIENT_ACK
    uint8_t acks_carried  # by data in a row, up to ACKS_CARRIED
    bint send_syn
    bint fin_queued
    bint fin_sent
    bint fin_received
    bint probe  # send a segment that the guest must answer: keepalive or zero-window probe
    uint8_t acks_due  # bare ACKs owed for segments behind a gap: one, or without SACK one for each
    uint8_t snd_wscale
    uint8_t rcv_wscale
    uint8_t backoff
    uint8_t keepalives
    uint8_t dupacks
    uint16_t mss
    uint16_t rcv_mss
    uint16_t gso_max  # payload bytes that the link takes at once, to be cut into segments by others; 0: one MSS
    uint16_t segment_max  # payload of the next segment to send: the most full segments that `gso_max` holds, or one
    # send sequence space
    uint32_t iss
    uint32_t snd_una
    uint32_t snd_nxt
    uint32_t snd_wnd
    uint32_t snd_wnd_max
    uint32_t snd_wl1
    uint32_t snd_wl2
    Ring snd
    # congestion control
    uint32_t cwnd
    uint32_t ssthresh
    uint32_t cwnd_acked
    uint32_t recover
    uint32_t high_rxt
    bint rexmit_first
    SeqRange* sacked
    int sacked_count
    # receive sequence space
    uint32_t irs
    uint32_t rcv_nxt
    uint32_t rcv_user
    uint32_t rcv_adv
    uint32_t rcv_cap
    uint32_t last_ack_sent
    uint32_t ack_every  # bytes that may arrive without being acknowledged at once
    uint32_t ack_limit  # of `ack_every`; 0: two segments
    Ring rcv
    SeqRange* ooo
    int ooo_count
    int ooo_last
    # timestamps
    uint32_t ts_offset  # of our clock, so that it does not tell the host's uptime
    uint32_t ts_recent
    int64_t ts_recent_at
    # round-trip time, us
    int32_t srtt
    int32_t rttvar
    uint32_t rto
    bint rtt_timing
    uint32_t rtt_seq
    int64_t rtt_start
    # deadlines, us; 0: not armed
    int64_t rexmit_at
    int64_t persist_at
    int64_t idle_at
    int64_t ack_at


cdef struct Delivery:
    # The slice of an EV_DATA event, inside the segment.
    const uint8_t* data
    uint32_t length


cdef struct OutSegment:
    # A segment to send: header fields, and a range of the send ring as payload.
    uint32_t seq
    uint32_t ack
    uint8_t flags
    uint32_t window
    uint32_t offset
    uint32_t length
    bint retransmission


cdef inline bint is_synchronized(const Tcb* t) noexcept nogil:
    return t.state >= ESTABLISHED


cdef inline bint may_receive(const Tcb* t) noexcept nogil:
    return t.state == ESTABLISHED or t.state == FIN_WAIT_1 or t.state == FIN_WAIT_2


cdef inline uint32_t snd_end(const Tcb* t) noexcept nogil:
    """One past the last byte that waits in the send ring; the SYN has been acknowledged."""
    return t.snd_una + t.snd.used


cdef inline uint32_t ts_clock(const Tcb* t, int64_t now) noexcept nogil:
    """Our timestamp, in milliseconds (RFC 7323 5.4)."""
    return <uint32_t>(now // 1000) + t.ts_offset


cdef inline uint32_t in_flight(const Tcb* t) noexcept nogil:
    return t.snd_nxt - t.snd_una


cdef inline uint32_t rcv_undelivered(const Tcb* t) noexcept nogil:
    """Bytes in order that the host socket has not taken yet."""
    return t.rcv_nxt - t.rcv_user - (1 if t.fin_received else 0)


cdef inline int64_t next_deadline(const Tcb* t) noexcept nogil:
    """When `tcp_on_timer` must be called at the latest; 0: never. `ack_at` is not in it: it comes much earlier."""
    cdef int64_t at = t.rexmit_at
    if t.persist_at != 0 and (at == 0 or t.persist_at < at):
        at = t.persist_at
    if t.idle_at != 0 and (at == 0 or t.idle_at < at):
        at = t.idle_at
    return at


cdef inline void tcp_touch(Tcb* t, int64_t now) noexcept nogil:
    """The guest was heard: the keepalive timer starts again (RFC 9293 3.8.4)."""
    t.keepalives = 0
    if t.state == ESTABLISHED or t.state == CLOSE_WAIT:
        t.idle_at = now + KEEPALIVE_IDLE
    elif t.state == FIN_WAIT_2:
        t.idle_at = now + KEEPALIVE_IDLE_HALF_CLOSED


cdef void tcp_init(Tcb* t, uint32_t iss, uint16_t mss, uint32_t rcv_cap, uint16_t gso_max) noexcept nogil
cdef void tcp_release(Tcb* t, RingPool* pool) noexcept nogil
cdef void set_state(Tcb* t, int state) noexcept nogil
