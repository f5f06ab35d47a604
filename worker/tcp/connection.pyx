# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A Python face over one TCP connection (RFC 9293), with memory of its own: for tests and tools, never for traffic.

It does with the state machine what the engine does: gives it segments and deadlines, takes segments out of it, and
plays the host socket, which takes what is in order at once or, with `reading` off, leaves it in the receive ring.
"""

from cython cimport final
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from posix.uio cimport iovec

from worker.ring cimport RING_MAX, Ring, RingPool, pool_close, pool_init, ring_reserve, ring_slices, ring_write_at
from worker.tcp.options cimport put_options
from worker.tcp.receiver cimport tcp_connect, tcp_delivered, tcp_hold_syn, tcp_open, tcp_receive
from worker.tcp.scoreboard cimport send_room
from worker.tcp.sender cimport tcp_next_segment, tcp_on_timer
from worker.tcp.tcb cimport (
    CA_LOSS, CA_OPEN, CA_RECOVERY, CLOSE_WAIT, CLOSED, CLOSING, ESTABLISHED, EV_ACKED, EV_BAD_ACK, EV_CLOSED, EV_DATA,
    EV_DROPPED, EV_DSACK, EV_ESTABLISHED, EV_FIN, EV_RECOVERY, EV_REOPEN, EV_RESET, EV_RING, EV_TIMEOUT, FIN_WAIT_1,
    FIN_WAIT_2, LAST_ACK, LISTEN, SYN_RECEIVED, SYN_SENT, TIME_WAIT, Delivery, OutSegment, Tcb, in_flight,
    next_deadline, rcv_undelivered, set_state, tcp_init, tcp_release,
)
from worker.wire.tcp cimport TCP_HEADER_LEN, TCP_MAX_HEADER_LEN, TCP_MAX_SACK_BLOCKS, TcpView, put_tcp

from enum import IntEnum, IntFlag

from worker.wire.parse import read_tcp

__all__ = ["Congestion", "Connection", "Event", "State"]

State = IntEnum("State", {
    "CLOSED": CLOSED, "LISTEN": LISTEN, "SYN_SENT": SYN_SENT, "SYN_RECEIVED": SYN_RECEIVED, "ESTABLISHED": ESTABLISHED,
    "FIN_WAIT_1": FIN_WAIT_1, "FIN_WAIT_2": FIN_WAIT_2, "CLOSE_WAIT": CLOSE_WAIT, "CLOSING": CLOSING,
    "LAST_ACK": LAST_ACK, "TIME_WAIT": TIME_WAIT,
}, module=__name__)

Congestion = IntEnum("Congestion", {"OPEN": CA_OPEN, "RECOVERY": CA_RECOVERY, "LOSS": CA_LOSS}, module=__name__)

Event = IntFlag("Event", {
    "DATA": EV_DATA, "RING": EV_RING, "ESTABLISHED": EV_ESTABLISHED, "FIN": EV_FIN, "RESET": EV_RESET,
    "ACKED": EV_ACKED, "CLOSED": EV_CLOSED, "TIMEOUT": EV_TIMEOUT, "REOPEN": EV_REOPEN, "BAD_ACK": EV_BAD_ACK,
    "DROPPED": EV_DROPPED, "RECOVERY": EV_RECOVERY, "DSACK": EV_DSACK,
}, module=__name__)

cdef enum:
    OVER = EV_RESET | EV_CLOSED | EV_TIMEOUT  # what makes the engine forget a connection


cdef void view_of(object segment, TcpView* view) except *:
    """The parser's view of a segment; its payload stays the segment's."""
    cdef const uint8_t[::1] payload = segment.payload
    cdef int n = 0
    view.sport = 0
    view.dport = 0
    view.seq = segment.seq
    view.ack = segment.ack
    view.flags = segment.flags
    view.window = segment.window
    view.length = <uint32_t>payload.shape[0]
    view.payload = &payload[0] if view.length else NULL
    view.mss = segment.mss or 0
    view.wscale = -1 if segment.window_scale is None else segment.window_scale
    view.sack_permitted = segment.sack_permitted
    view.has_ts = segment.timestamp is not None
    if view.has_ts:
        view.ts_val, view.ts_ecr = segment.timestamp
    for start, end in segment.sack[:TCP_MAX_SACK_BLOCKS]:
        view.sack[n].start = start
        view.sack[n].end = end
        n += 1
    view.sack_count = n


cdef bytes ring_bytes(const Ring* ring, uint32_t offset, uint32_t length):
    cdef iovec pieces[2]
    cdef bytes first
    if length == 0:
        return b""
    if ring_slices(ring, offset, length, pieces) == 1:
        return (<char*>pieces[0].iov_base)[:pieces[0].iov_len]
    first = (<char*>pieces[0].iov_base)[:pieces[0].iov_len]
    return first + (<char*>pieces[1].iov_base)[:pieces[1].iov_len]


@final
cdef class Connection:
    cdef Tcb tcb
    cdef RingPool pool
    cdef uint16_t own_mss
    cdef bint over
    cdef bytearray taken
    cdef public bint reading

    def __init__(
        self, uint32_t iss, uint16_t mss=1460, uint32_t window=262144, size_t memory=4194304, uint16_t gso_max=0
    ):
        pool_init(&self.pool, memory)
        tcp_init(&self.tcb, iss, mss, window, gso_max)
        self.own_mss = mss
        self.taken = bytearray()
        self.reading = True

    def __dealloc__(self):
        tcp_release(&self.tcb, &self.pool)
        pool_close(&self.pool)

    def hold(self, syn, int64_t now):
        cdef TcpView view
        view_of(syn, &view)
        tcp_hold_syn(&self.tcb, &view, now)

    def answer(self):
        tcp_open(&self.tcb)

    def call(self):
        tcp_connect(&self.tcb)

    def receive(self, segment, int64_t now):
        cdef TcpView view
        cdef Delivery delivery
        cdef int events
        view_of(segment, &view)
        events = tcp_receive(&self.tcb, &view, now, &self.pool, &delivery)
        if events & EV_DATA:
            self.take_slice(&delivery)
        if self.reading:
            self.read(self.tcb.rcv.used)
        self.note_end(events)
        return Event(events)

    cdef void take_slice(self, const Delivery* delivery) except *:
        if self.reading:
            self.taken += delivery.data[:delivery.length]
            tcp_delivered(&self.tcb, &self.pool, delivery.length, 0)
        elif ring_reserve(&self.pool, &self.tcb.rcv, delivery.length):
            ring_write_at(&self.tcb.rcv, 0, delivery.data, delivery.length)
            self.tcb.rcv.used += delivery.length
        else:
            raise MemoryError("no room for a slice: the engine would abort the connection")

    cdef void note_end(self, int events) noexcept:
        if events & OVER and not self.over:
            self.over = True
            set_state(&self.tcb, CLOSED)
            tcp_release(&self.tcb, &self.pool)

    def read(self, uint32_t size):
        if size > self.tcb.rcv.used:
            size = self.tcb.rcv.used
        if size:
            self.taken += ring_bytes(&self.tcb.rcv, 0, size)
            tcp_delivered(&self.tcb, &self.pool, 0, size)
        return size

    def send(self, const uint8_t[::1] data):
        cdef Ring* ring = &self.tcb.snd
        cdef uint32_t length = <uint32_t>min(data.shape[0], RING_MAX - ring.used)
        if length == 0 or self.over or not ring_reserve(&self.pool, ring, ring.used + length):
            return 0
        ring_write_at(ring, ring.used, &data[0], length)
        ring.used += length
        return length

    def finish(self):
        self.tcb.fin_queued = True

    def on_timer(self, int64_t now):
        cdef int events = tcp_on_timer(&self.tcb, now)
        self.note_end(events)
        return Event(events)

    def segments(self, int64_t now, int limit=65536):
        cdef OutSegment out
        cdef uint8_t header[TCP_MAX_HEADER_LEN]
        cdef size_t length
        cdef list segments = []
        while not self.over and len(segments) < limit and tcp_next_segment(&self.tcb, now, &out):
            length = TCP_HEADER_LEN + put_options(&self.tcb, &out, self.own_mss, now, header + TCP_HEADER_LEN)
            put_tcp(header, 0, 0, out.seq, out.ack, length, out.flags, out.window)
            segments.append(read_tcp(header[:length] + ring_bytes(&self.tcb.snd, out.offset, out.length)))
        return segments

    @property
    def state(self):
        return State(self.tcb.state)

    @property
    def congestion(self):
        return Congestion(self.tcb.ca_state)

    @property
    def deadline(self):
        return None if self.over else next_deadline(&self.tcb) or None

    @property
    def ack_deadline(self):
        return None if self.over else self.tcb.ack_at or None

    @property
    def ack_limit(self):
        return self.tcb.ack_limit

    @ack_limit.setter
    def ack_limit(self, uint32_t size):
        self.tcb.ack_limit = size

    @property
    def received(self):
        return bytes(self.taken)

    @property
    def unread(self):
        return rcv_undelivered(&self.tcb)

    @property
    def unsent(self):
        return self.tcb.snd.used - min(in_flight(&self.tcb), self.tcb.snd.used)

    @property
    def room(self):
        return send_room(&self.tcb)

    @property
    def in_flight(self):
        return in_flight(&self.tcb)

    @property
    def mss(self):
        return self.tcb.mss

    @property
    def cwnd(self):
        return self.tcb.cwnd

    @property
    def ssthresh(self):
        return self.tcb.ssthresh

    @property
    def srtt(self):
        return self.tcb.srtt

    @property
    def rto(self):
        return self.tcb.rto

    @property
    def memory_in_use(self):
        return self.pool.in_use

    @property
    def iss(self):
        return self.tcb.iss

    @iss.setter
    def iss(self, uint32_t value):
        self.tcb.iss = value
