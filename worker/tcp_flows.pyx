# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""TCP flows: connections of the guest and the host sockets behind them.

From the guest: the payload of a batch's segments is gathered, where it lies in the receive buffer, into one `sendmsg`
for each host socket; only what the socket does not take is copied, into the flow's receive ring, and closes the
guest's window. To the guest: the host socket is read straight into the flow's send ring, never more than the guest's
window and the congestion window let out, and the ring's bytes go to the link where they lie. So both directions copy
nothing in user space while both ends keep up, and a slow end stops the other.
"""

from libc.errno cimport EACCES, EAGAIN, EHOSTUNREACH, EINTR, ENETUNREACH, EPERM, ETIMEDOUT, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.uio cimport iovec
from posix.unistd cimport close

from worker.core cimport FLOW_TCP, MAX_SLICES, MAX_TIME_WAIT, FlowHead, Slice, count, count_by
from worker.counters cimport (
    C_FLOW_BYTES_FROM_GUEST, C_FLOW_BYTES_TO_GUEST, C_SYSCALLS_HOST_RECV, C_SYSCALLS_HOST_SEND, C_TCP_CLOSED,
    C_TCP_CONNECT_FAILED, C_TCP_DROPPED, C_TCP_ESTABLISHED, C_TCP_OUT_OF_MEMORY, C_TCP_OVER_LIMIT,
    C_TCP_RESETS_RECEIVED, C_TCP_RESETS_SENT, C_TCP_TIMEOUTS,
)
from worker.flow_table cimport table_insert, table_remove
from worker.hostio cimport (
    MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, SO_ERROR, SOL_SOCKET, getsockopt, msghdr, readv, reset_on_close, sendmsg,
    shutdown, socklen_t,
)
from worker.icmp_errors cimport icmp_error
from worker.link.output cimport out_batch_full
from worker.lists cimport list_add, list_append, list_empty, list_pop, list_remove, node_init
from worker.readiness cimport READY_ERR, READY_IN, READY_OUT, READY_RDHUP, ready_rearm, ready_remove
from worker.ring cimport RING_MAX, ring_reserve, ring_slices, ring_write_at
from worker.segments cimport emit_reset, emit_segment
from worker.tcp.receiver cimport tcp_delivered, tcp_open, tcp_receive
from worker.tcp.sender cimport tcp_next_segment, tcp_on_timer
from worker.tcp.tcb cimport (
    CLOSED, ESTABLISHED, EV_ACKED, EV_BAD_ACK, EV_CLOSED, EV_DATA, EV_DROPPED, EV_ESTABLISHED, EV_REOPEN,
    EV_RESET, EV_TIMEOUT,
    TIME_WAIT, Delivery, OutSegment, Tcb, in_flight, is_synchronized, next_deadline, send_room, tcp_init, tcp_release,
)
from worker.timers cimport wheel_arm, wheel_disarm
from worker.wire.icmp cimport (
    ICMP_ADMIN_PROHIBITED, ICMP_HOST_UNREACHABLE, ICMP_NET_UNREACHABLE, ICMP_UNREACHABLE,
)
from worker.wire.ipv4 cimport IPV4_HEADER_LEN
from worker.wire.tcp cimport TCP_ACK, TCP_HEADER_LEN, TCP_RST

cdef enum:
    READ_MAX = 262144  # bytes of one read of a host socket
    READ_FIRST = 16384
    EMIT_QUANTUM = 64  # segments of one flow before the next flow's turn
    SERVE_QUANTUM = 256  # flows served before the link is looked at again
    FLUSH_IOVS = 1024
    WINDOW_PACKETS = 340  # of all flows together: a tap queue holds 1,000 packets, and windows are bytes
    WINDOW_MAX = 1048576  # bytes of one flow
    EPOCH = 20000  # us over which flows count as active


# --- life and death of a flow --------------------------------------------------------------------------------------


cdef uint32_t isn(Core* core, const FlowKey* key) noexcept nogil:
    """An initial sequence number that cannot be guessed, and grows with the clock (RFC 6528)."""
    cdef uint64_t h = (<uint64_t>core.isn_seed[0] << 32) | core.isn_seed[1]
    h = (h ^ key.guest.lo ^ (<uint64_t>key.guest_port << 48)) * <uint64_t>0x9E3779B97F4A7C15
    h ^= h >> 31
    h = (h ^ key.peer.lo ^ key.peer_port ^ core.isn_seed[2]) * <uint64_t>0xC2B2AE3D27D4EB4F
    h ^= h >> 29
    return <uint32_t>(h + <uint64_t>(core.now >> 2) + core.isn_seed[3])


cdef uint32_t window_share(const Core* core) noexcept nogil:
    """What one flow may promise, so that all active ones together do not overrun the guest's queue."""
    cdef uint32_t active = core.active_before if core.active_before > core.active_now else core.active_now
    cdef uint64_t share = WINDOW_PACKETS * <uint64_t>(core.mtu - 40)
    if active > 1:
        share //= active
    if share < 4 * core.mtu:
        share = 4 * core.mtu
    return <uint32_t>(share if share < WINDOW_MAX else WINDOW_MAX)


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
    tcp_init(&flow.tcb, isn(core, key), <uint16_t>(core.mtu - IPV4_HEADER_LEN - TCP_HEADER_LEN), window_share(core))
    node_init(&flow.timer.node, &flow.timer)
    flow.timer.kind = FLOW_TCP
    flow.timer.owner = flow
    node_init(&flow.dirty, flow)
    node_init(&flow.host_queue, flow)
    node_init(&flow.out_queue, flow)
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
    if flow.tcb.state == TIME_WAIT:
        core.time_wait_count -= 1
    table_remove(&core.flows, &flow.head)
    core.tcp_count -= 1
    wheel_disarm(&flow.timer)
    list_remove(&flow.dirty)
    list_remove(&flow.host_queue)
    list_remove(&flow.out_queue)
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
    cdef int code = -1
    count(core, C_TCP_CONNECT_FAILED)
    if error == EHOSTUNREACH:
        code = ICMP_HOST_UNREACHABLE
    elif error == ENETUNREACH:
        code = ICMP_NET_UNREACHABLE
    elif error == EACCES or error == EPERM:
        code = ICMP_ADMIN_PROHIBITED
    if code >= 0:
        icmp_error(core, &core.gateway_ip, ICMP_UNREACHABLE, <uint8_t>code, 0, flow.quote, sizeof(flow.quote))
    elif error != ETIMEDOUT:
        reset_guest(core, flow)
    destroy(core, flow, False)


# --- from the guest --------------------------------------------------------------------------------------------------


cdef void keep_slice(Core* core, TcpFlow* flow, const Delivery* data) noexcept nogil:
    cdef Slice* piece
    if core.slice_count == MAX_SLICES:
        tcp_batch_done(core)
        if flow.dead:
            return
    piece = &core.slices[core.slice_count]
    core.slice_count += 1
    piece.data = data.data
    piece.length = data.length
    piece.next = NULL
    if flow.last_slice != NULL:
        flow.last_slice.next = piece
    else:
        flow.first_slice = piece
    flow.last_slice = piece
    flow.sliced += data.length


cdef void note_active(Core* core, TcpFlow* flow) noexcept nogil:
    """Count the flows that sent something lately, and give each its share of the window."""
    if core.now >= core.epoch_end:
        core.epoch += 1
        core.epoch_end = core.now + EPOCH
        core.active_before = core.active_now
        core.active_now = 0
    if flow.epoch != core.epoch:
        flow.epoch = core.epoch
        core.active_now += 1
        if flow.tcb.rcv_wscale:
            flow.tcb.rcv_cap = window_share(core)


cdef bint tcp_from_guest(Core* core, TcpFlow* flow, const TcpView* s) noexcept nogil:
    """A segment of a known connection; what it brings to the host socket is done when the batch is.

    True: it opens a new connection in the place of this one, which is in TIME-WAIT.
    """
    cdef Delivery delivery
    cdef int before = flow.tcb.state
    cdef int events = tcp_receive(&flow.tcb, s, core.now, &core.pool, &delivery)
    if events & EV_REOPEN:
        return True
    if flow.tcb.state == TIME_WAIT and before != TIME_WAIT:
        core.time_wait_count += 1
    if events & EV_DROPPED:
        count(core, C_TCP_DROPPED)
    if events & EV_RESET:
        count(core, C_TCP_RESETS_RECEIVED)
        if flow.sliced:
            flush_to_host(core, flow)
            if flow.dead:
                return False
        destroy(core, flow, True)
        return False
    if events & EV_BAD_ACK:
        emit_reset(core, &flow.head.key, s.ack, 0, TCP_RST)
        return False
    if events & EV_ESTABLISHED:
        count(core, C_TCP_ESTABLISHED)
    if events & EV_DATA:
        note_active(core, flow)
        keep_slice(core, flow, &delivery)
        if flow.dead:
            return False
    if events & (EV_ACKED | EV_ESTABLISHED) and (flow.host_readable or flow.tcb.snd.used or flow.host_eof):
        list_add(&core.host_queue, &flow.host_queue)
    list_add(&core.dirty, &flow.dirty)
    return False


cdef int gather(TcpFlow* flow, iovec* pieces) noexcept nogil:
    """What is in order for the host socket: slices, then the receive ring."""
    cdef Slice* piece = flow.first_slice
    cdef int n = 0
    while piece != NULL and n < FLUSH_IOVS - 2:
        pieces[n].iov_base = <void*>piece.data
        pieces[n].iov_len = piece.length
        n += 1
        piece = piece.next
    if piece == NULL and flow.tcb.rcv.used:
        n += ring_slices(&flow.tcb.rcv, flow.sliced, flow.tcb.rcv.used, pieces + n)
    return n


cdef void drop_slices(TcpFlow* flow, uint32_t n) noexcept nogil:
    cdef Slice* piece = flow.first_slice
    flow.sliced -= n
    while n:
        if n < piece.length:
            piece.data += n
            piece.length -= n
            break
        n -= piece.length
        piece = piece.next
    flow.first_slice = piece
    if piece == NULL:
        flow.last_slice = NULL


cdef bint store_slices(Core* core, TcpFlow* flow) noexcept nogil:
    """Copy what the host socket did not take, before the receive buffer is used again; False: out of memory."""
    cdef Slice* piece = flow.first_slice
    cdef uint32_t offset = 0
    cdef uint32_t beyond = 0
    if piece == NULL:
        return True
    if flow.tcb.ooo_count:
        beyond = flow.tcb.ooo[flow.tcb.ooo_count - 1].end - flow.tcb.rcv_user
    if beyond < flow.sliced + flow.tcb.rcv.used:
        beyond = flow.sliced + flow.tcb.rcv.used
    if not ring_reserve(&core.pool, &flow.tcb.rcv, beyond):
        return False
    while piece != NULL:
        ring_write_at(&flow.tcb.rcv, offset, piece.data, piece.length)
        offset += piece.length
        piece = piece.next
    flow.tcb.rcv.used += flow.sliced
    flow.first_slice = NULL
    flow.last_slice = NULL
    flow.sliced = 0
    return True


cdef void flush_to_host(Core* core, TcpFlow* flow) noexcept nogil:
    """Give the host socket what it takes of the guest's bytes, keep the rest, pass on the guest's FIN at the end."""
    cdef iovec pieces[FLUSH_IOVS]
    cdef msghdr message
    cdef ssize_t n
    cdef uint32_t of_slices
    memset(&message, 0, sizeof(message))
    while flow.host_writable and (flow.sliced or flow.tcb.rcv.used):
        message.msg_iov = pieces
        message.msg_iovlen = gather(flow, pieces)
        n = sendmsg(flow.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        count(core, C_SYSCALLS_HOST_SEND)
        if n < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                abort(core, flow)
                return
            flow.host_writable = False
            ready_rearm(&core.ready, flow.fd, READY_OUT)
            break
        of_slices = <uint32_t>n if <uint32_t>n < flow.sliced else flow.sliced
        drop_slices(flow, of_slices)
        tcp_delivered(&flow.tcb, &core.pool, of_slices, <uint32_t>n - of_slices)
        flow.from_guest += n
        count_by(core, C_FLOW_BYTES_FROM_GUEST, n)
    if flow.sliced and not store_slices(core, flow):
        count(core, C_TCP_OUT_OF_MEMORY)
        abort(core, flow)
        return
    if flow.tcb.fin_received and flow.tcb.rcv.used == 0 and not flow.host_shut and flow.fd >= 0:
        flow.host_shut = True
        shutdown(flow.fd, SHUT_WR)
    end_if_done(core, flow)


cdef void end_if_done(Core* core, TcpFlow* flow) noexcept nogil:
    """Close what neither side needs any more."""
    cdef bint delivered = flow.tcb.rcv.used == 0 and flow.sliced == 0
    if flow.dead:
        return
    if flow.tcb.state == CLOSED and delivered:
        destroy(core, flow, False)
    elif flow.tcb.state == TIME_WAIT and delivered:
        close_host(core, flow, False)
        if core.time_wait_count > MAX_TIME_WAIT:
            destroy(core, flow, False)


cdef void tcp_batch_done(Core* core) noexcept nogil:
    """All frames at hand are read: move payload to the host sockets, then let acknowledgments go out."""
    cdef TcpFlow* flow
    while not list_empty(&core.dirty):
        flow = <TcpFlow*>list_pop(&core.dirty)
        flush_to_host(core, flow)
        if flow.dead:
            continue
        want_output(core, flow)
        schedule(core, flow)
    core.slice_count = 0


# --- to the guest ----------------------------------------------------------------------------------------------------


cdef void tcp_host_event(Core* core, TcpFlow* flow, uint32_t events) noexcept nogil:
    """The host socket changed; the work is done by `tcp_serve_host_queue`."""
    cdef int error = 0
    cdef socklen_t length = sizeof(int)
    if flow.dead or flow.fd < 0:
        return
    if flow.connecting:
        if not events & (READY_OUT | READY_ERR):
            return
        getsockopt(flow.fd, SOL_SOCKET, SO_ERROR, &error, &length)
        if error:
            connect_failed(core, flow, error)
            return
        host_is_up(core, flow)
    if events & READY_ERR and flow.host_eof:
        getsockopt(flow.fd, SOL_SOCKET, SO_ERROR, &error, &length)
        if error:
            abort(core, flow)
            return
    if events & READY_OUT:
        flow.host_writable = True
    if events & (READY_IN | READY_RDHUP | READY_ERR):
        flow.host_readable = True
        flow.host_rdhup = flow.host_rdhup or (events & (READY_RDHUP | READY_ERR)) != 0
    list_add(&core.host_queue, &flow.host_queue)


cdef uint32_t read_room(Core* core, TcpFlow* flow) noexcept nogil:
    """How much to read from the host socket now; small change is left until more can be read at once."""
    cdef Tcb* t = &flow.tcb
    cdef uint32_t room = send_room(t)
    cdef uint32_t enough = t.snd_wnd >> 2
    if room > RING_MAX - t.snd.used:
        room = RING_MAX - t.snd.used
    if enough > 65536:
        enough = 65536
    if room < enough and in_flight(t):
        return 0
    return room if room < READ_MAX else READ_MAX


cdef void host_is_finished(Core* core, TcpFlow* flow) noexcept nogil:
    flow.host_eof = True
    flow.host_readable = False
    flow.tcb.fin_queued = True
    want_output(core, flow)


cdef bint read_from_host(Core* core, TcpFlow* flow) noexcept nogil:
    """Read once into the send ring; True: there may be more, and room for it."""
    cdef iovec pieces[2]
    cdef Tcb* t = &flow.tcb
    cdef uint32_t room = read_room(core, flow)
    cdef uint32_t wanted = flow.read_hint if flow.read_hint else READ_FIRST
    cdef ssize_t n
    cdef int parts
    if room == 0 or t.state < ESTABLISHED:
        return False
    if wanted > room:
        wanted = room
    if not ring_reserve(&core.pool, &t.snd, t.snd.used + wanted):
        count(core, C_TCP_OUT_OF_MEMORY)
        if t.snd.used == t.snd.size:
            return False
        wanted = t.snd.size - t.snd.used
    parts = ring_slices(&t.snd, t.snd.used, wanted, pieces)
    n = readv(flow.fd, pieces, parts)
    count(core, C_SYSCALLS_HOST_RECV)
    if n <= 0:
        if t.snd.used == 0:
            t.snd.start = 0
        if n < 0 and errno == EAGAIN:
            flow.host_readable = False
            ready_rearm(&core.ready, flow.fd, READY_IN)
        elif n < 0 and errno != EINTR:
            abort(core, flow)
        elif n == 0:
            host_is_finished(core, flow)
        return False
    t.snd.used += <uint32_t>n
    flow.to_guest += n
    count_by(core, C_FLOW_BYTES_TO_GUEST, n)
    want_output(core, flow)
    if <uint32_t>n == wanted:
        flow.read_hint = wanted * 4 if wanted * 4 < READ_MAX else READ_MAX
        return True
    if not flow.host_rdhup:
        flow.host_readable = False  # a short read has emptied the socket
        ready_rearm(&core.ready, flow.fd, READY_IN)
    return flow.host_readable


cdef bint tcp_serve_host_queue(Core* core) noexcept nogil:
    """Give every flow in the queue one turn with its host socket; True: some want another."""
    cdef TcpFlow* flow
    cdef int i
    for i in range(SERVE_QUANTUM):
        if list_empty(&core.host_queue):
            return False
        if core.out.blocked:
            return False
        flow = <TcpFlow*>list_pop(&core.host_queue)
        if flow.tcb.rcv.used and flow.host_writable:
            flush_to_host(core, flow)
            if flow.dead:
                continue
            if flow.tcb.ack_now:
                want_output(core, flow)
        if flow.host_readable and not flow.host_eof and read_from_host(core, flow):
            list_add(&core.host_queue, &flow.host_queue)
        if flow.tcb.snd.used and not flow.dead:
            want_output(core, flow)
        if out_batch_full(core):
            return True
    return True


cdef void tcp_serve_out_queue(Core* core) noexcept nogil:
    """Fill the batch to the link with what flows have to send, a quantum for each in turn."""
    cdef TcpFlow* flow
    cdef OutSegment segment
    cdef int sent
    while not out_batch_full(core) and not list_empty(&core.out_queue):
        flow = <TcpFlow*>list_pop(&core.out_queue)
        sent = 0
        while sent < EMIT_QUANTUM and not out_batch_full(core):
            if not tcp_next_segment(&flow.tcb, core.now, &segment):
                sent = -1
                break
            emit_segment(core, flow, &segment)
            sent += 1
        if sent >= 0:
            list_add(&core.out_queue, &flow.out_queue)
        schedule(core, flow)


cdef void tcp_timer(Core* core, TcpFlow* flow) noexcept nogil:
    """The flow's slot in the wheel came up; its deadline may have moved on since."""
    cdef int64_t at = next_deadline(&flow.tcb)
    cdef int events
    if at == 0:
        return
    if core.now < at:
        wheel_arm(&core.wheel, &flow.timer, at)
        return
    events = tcp_on_timer(&flow.tcb, core.now)
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
