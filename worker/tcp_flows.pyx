# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""TCP flows: connections of the guest, and the host sockets behind them; how they live and end.

`tcp_opening` makes them, `tcp_from_guest` and `tcp_to_guest` carry their bytes. A flow that ends is forgotten at once,
but its memory stays until the end of the turn, for events that still name it.
"""

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close

from worker.core cimport FLOW_TCP, FlowHead, count
from worker.counters cimport (
    C_TCP_ATTEMPT_FAILS, C_TCP_CLOSED, C_TCP_CONNECT_FAILED, C_TCP_ESTAB_RESETS, C_TCP_OUT_OF_MEMORY, C_TCP_OVER_LIMIT,
    C_TCP_RESETS_SENT, C_TCP_RTO_EXPIRED, C_TCP_TIMEOUTS,
)
from worker.flow_table cimport table_insert, table_remove
from worker.hostio cimport reset_on_close
from worker.icmp_errors cimport icmp_error, unreachable_code
from worker.lists cimport Node, list_add, list_append, list_empty, list_pop, list_remove, node_init
from worker.readiness cimport ready_remove
from worker.segments cimport emit_reset
from worker.tcp.receiver cimport tcp_open
from worker.tcp.sender cimport tcp_on_timer
from worker.tcp.tcb cimport (
    CLOSE_WAIT, CLOSED, ESTABLISHED, EV_CLOSED, EV_TIMEOUT, LISTEN, SYN_RECEIVED, TIME_WAIT, Tcb, is_synchronized,
    next_deadline, set_state, tcp_init, tcp_release,
)
from worker.timers cimport wheel_arm, wheel_disarm
from worker.wire.icmp cimport ICMP_UNREACHABLE
from worker.wire.ipv4 cimport IPV4_HEADER_LEN
from worker.wire.tcp cimport TCP_ACK, TCP_HEADER_LEN, TCP_RST

cdef enum:
    # Windows are bytes, queues are packets: a tap device's holds 1,000 and drops the rest.
    WINDOW_PACKETS = 340  # of one flow; more gains nothing
    WINDOW_PACKETS_ALL = 800  # of all flows together
    WINDOW_PACKETS_MIN = 4
    WINDOW_MAX = 1048576  # bytes of one flow
    SEVERAL_FLOWS = 4
    GSO_MAX = 65535 - IPV4_HEADER_LEN - TCP_HEADER_LEN - 12  # payload of the longest packet, behind a timestamp


cdef uint32_t isn(Core* core, const FlowKey* key) noexcept nogil:
    """An initial sequence number that cannot be guessed, and grows with the clock (RFC 6528)."""
    cdef uint64_t h = (<uint64_t>core.isn_seed[0] << 32) | core.isn_seed[1]
    h = (h ^ key.guest.lo ^ (<uint64_t>key.guest_port << 48)) * <uint64_t>0x9E3779B97F4A7C15
    h ^= h >> 31
    h = (h ^ key.peer.lo ^ key.peer_port ^ core.isn_seed[2]) * <uint64_t>0xC2B2AE3D27D4EB4F
    h ^= h >> 29
    return <uint32_t>(h + <uint64_t>(core.now >> 2) + core.isn_seed[3])


cdef uint32_t active_flows(const Core* core) noexcept nogil:
    return core.active_before if core.active_before > core.active_now else core.active_now


cdef uint32_t window_share(const Core* core) noexcept nogil:
    """What one flow may promise, so that all active ones together do not overrun the guest's queue."""
    cdef uint32_t active = active_flows(core)
    cdef uint32_t packets = WINDOW_PACKETS_ALL // active if active else WINDOW_PACKETS
    cdef uint64_t share
    if packets > WINDOW_PACKETS:
        packets = WINDOW_PACKETS
    elif packets < WINDOW_PACKETS_MIN:
        packets = WINDOW_PACKETS_MIN
    share = packets * <uint64_t>core.mtu
    return <uint32_t>(share if share < WINDOW_MAX else WINDOW_MAX)


cdef void share_window(const Core* core, TcpFlow* flow) noexcept nogil:
    """Give a flow its share, to be acknowledged up to twice in it where others keep the link busy meanwhile."""
    flow.tcb.rcv_cap = window_share(core)
    flow.tcb.ack_limit = flow.tcb.rcv_cap >> 1 if active_flows(core) >= SEVERAL_FLOWS else 0


cdef TcpFlow* new_flow(Core* core, const FlowKey* key) noexcept nogil:
    cdef TcpFlow* flow
    if core.tcp_count >= core.max_tcp_flows:
        count(core, C_TCP_OVER_LIMIT)
        return NULL
    flow = <TcpFlow*>calloc(1, sizeof(TcpFlow))
    if flow == NULL:
        count(core, C_TCP_OUT_OF_MEMORY)
        return NULL
    flow.head.key = key[0]
    flow.fd = -1
    tcp_init(
        &flow.tcb, isn(core, key), <uint16_t>(core.mtu - IPV4_HEADER_LEN - TCP_HEADER_LEN), window_share(core),
        GSO_MAX if core.offloads else 0,
    )
    flow.tcb.ts_offset = core.ts_offset
    node_init(&flow.timer.node, &flow.timer)
    flow.timer.kind = FLOW_TCP
    flow.timer.owner = flow
    node_init(&flow.dirty, flow)
    node_init(&flow.host_queue, flow)
    node_init(&flow.out_queue, flow)
    node_init(&flow.ack_queue, flow)
    node_init(&flow.grave, flow)
    if not table_insert(&core.flows, &flow.head):
        free(flow)
        return NULL
    core.tcp_count += 1
    return flow


cdef void close_host(Core* core, TcpFlow* flow, bint reset) noexcept nogil:
    if flow.fd >= 0:
        if reset:
            reset_on_close(flow.fd)
        if core.ready.epoll_fd < 0:
            ready_remove(&core.ready, flow.fd)
        close(flow.fd)
        flow.fd = -1
    flow.host_readable = False
    flow.host_writable = False


cdef void destroy(Core* core, TcpFlow* flow, bint reset_host) noexcept nogil:
    """Forget the flow; its memory stays until the end of the turn, for events that still name it."""
    if flow.dead:
        return
    flow.dead = True
    close_host(core, flow, reset_host)
    if LISTEN <= flow.tcb.state <= SYN_RECEIVED:
        count(core, C_TCP_ATTEMPT_FAILS)
    elif flow.tcb.state == ESTABLISHED or flow.tcb.state == CLOSE_WAIT:
        count(core, C_TCP_ESTAB_RESETS)
    elif flow.tcb.state == TIME_WAIT:
        core.time_wait_count -= 1
    table_remove(&core.flows, &flow.head)
    core.tcp_count -= 1
    wheel_disarm(&flow.timer)
    list_remove(&flow.dirty)
    list_remove(&flow.host_queue)
    list_remove(&flow.out_queue)
    list_remove(&flow.ack_queue)
    tcp_release(&flow.tcb, &core.pool)
    list_append(&core.tcp_grave, &flow.grave)
    count(core, C_TCP_CLOSED)


cdef void tcp_bury(Core* core) noexcept nogil:
    """Free the flows that died in this turn."""
    cdef void* flow
    while not list_empty(&core.tcp_grave):
        flow = list_pop(&core.tcp_grave)
        free(flow)


cdef void reset_guest(Core* core, TcpFlow* flow) noexcept nogil:
    """Tell the guest that the connection is gone (RFC 9293 3.5.2)."""
    cdef Tcb* t = &flow.tcb
    if is_synchronized(t):
        emit_reset(core, &flow.head.key, t.snd_nxt, t.rcv_nxt, TCP_RST | TCP_ACK)
    elif t.irs or t.rcv_nxt:
        emit_reset(core, &flow.head.key, t.iss + 1 if t.snd_nxt != t.iss else 0, t.rcv_nxt, TCP_RST | TCP_ACK)
    count(core, C_TCP_RESETS_SENT)


cdef void abort(Core* core, TcpFlow* flow) noexcept nogil:
    """End both sides at once."""
    reset_guest(core, flow)
    destroy(core, flow, True)


cdef void schedule(Core* core, TcpFlow* flow) noexcept nogil:
    """After anything changed: the timer follows the connection's next deadline."""
    wheel_arm(&core.wheel, &flow.timer, next_deadline(&flow.tcb))
    if flow.tcb.ack_at != 0:
        list_add(&core.patient_queue if flow.tcb.ack_patient else &core.ack_queue, &flow.ack_queue)
    else:
        list_remove(&flow.ack_queue)


cdef void want_output(Core* core, TcpFlow* flow) noexcept nogil:
    list_add(&core.out_queue, &flow.out_queue)


# --- opening ---------------------------------------------------------------------------------------------------------


cdef void host_is_up(Core* core, TcpFlow* flow) noexcept nogil:
    flow.connecting = False
    flow.host_writable = True
    tcp_open(&flow.tcb)
    want_output(core, flow)


cdef void connect_failed(Core* core, TcpFlow* flow, int error) noexcept nogil:
    """Pass on why, in the way the guest's own kernel would have learned it."""
    cdef int code = unreachable_code(error)
    count(core, C_TCP_CONNECT_FAILED)
    if code >= 0:
        icmp_error(core, &core.gateway_ip, ICMP_UNREACHABLE, <uint8_t>code, 0, flow.quote, sizeof(flow.quote))
    elif error != ETIMEDOUT:
        reset_guest(core, flow)
    destroy(core, flow, False)


cdef void send_delayed_acks(Core* core, Node* queue) noexcept nogil:
    cdef TcpFlow* flow
    while not list_empty(queue):
        flow = <TcpFlow*>queue.next.owner
        if flow.tcb.ack_at > core.now:
            return
        list_remove(&flow.ack_queue)
        tcp_on_timer(&flow.tcb, core.now)
        want_output(core, flow)


cdef void tcp_send_delayed_acks(Core* core) noexcept nogil:
    """Let those acknowledgments go that found no data to carry them."""
    send_delayed_acks(core, &core.ack_queue)
    send_delayed_acks(core, &core.patient_queue)


cdef int64_t tcp_next_delayed_ack(const Core* core) noexcept nogil:
    """When the first of them must go; 0: there is none."""
    cdef int64_t at = 0
    cdef int64_t patient
    if not list_empty(&core.ack_queue):
        at = (<TcpFlow*>core.ack_queue.next.owner).tcb.ack_at
    if not list_empty(&core.patient_queue):
        patient = (<TcpFlow*>core.patient_queue.next.owner).tcb.ack_at
        if at == 0 or patient < at:
            at = patient
    return at


cdef void tcp_timer(Core* core, TcpFlow* flow) noexcept nogil:
    """The flow's slot in the wheel came up; its deadline may have moved on since."""
    cdef int64_t at = next_deadline(&flow.tcb)
    cdef int events
    if flow.host_readable and not flow.host_eof and flow.tcb.snd.used == 0:
        list_add(&core.host_queue, &flow.host_queue)
    if at == 0:
        return
    if core.now < at:
        wheel_arm(&core.wheel, &flow.timer, at)
        return
    if flow.tcb.rexmit_at != 0 and core.now >= flow.tcb.rexmit_at:
        count(core, C_TCP_RTO_EXPIRED)
    events = tcp_on_timer(&flow.tcb, core.now)
    if events & EV_CLOSED and flow.tcb.rcv.used:
        # TIME-WAIT is over for the guest, but a slow host has not taken everything: `tcp_from_guest` ends it then
        core.time_wait_count -= 1
        set_state(&flow.tcb, CLOSED)
        flow.tcb.idle_at = 0
        return
    if events & EV_CLOSED:
        destroy(core, flow, False)
        return
    if events & EV_TIMEOUT:
        count(core, C_TCP_TIMEOUTS)
        abort(core, flow)
        return
    want_output(core, flow)
    schedule(core, flow)


cdef void tcp_reset_all(Core* core) noexcept nogil:
    """The engine closes: every connection ends by RST on both sides."""
    cdef uint32_t i
    cdef FlowHead* head
    cdef FlowHead* following
    for i in range(core.flows.mask + 1):
        head = core.flows.buckets[i]
        while head != NULL:
            following = head.next_in_bucket
            if head.key.proto == FLOW_TCP:
                abort(core, <TcpFlow*>head)
            head = following
    tcp_bury(core)
