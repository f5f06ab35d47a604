# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""TCP from the guest to host sockets.

The payload of a batch's segments is gathered, where it lies in the receive buffer, into one `sendmsg` for each host
socket; only what the socket does not take is copied, into the flow's receive ring, and closes the guest's window. So
nothing is copied in user space while the host keeps up, and a slow host stops the guest.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t
from libc.string cimport memset
from posix.uio cimport iovec

from worker.core cimport MAX_SLICES, MAX_TIME_WAIT, TAG_TCP, Slice, count, count_by, token_of
from worker.counters cimport (
    C_FLOW_BYTES_FROM_GUEST, C_SYSCALLS_HOST_SEND, C_TCP_DROPPED, C_TCP_DSACKS, C_TCP_ESTABLISHED,
    C_TCP_FAST_RECOVERIES, C_TCP_OUT_OF_MEMORY, C_TCP_RESETS_RECEIVED, C_TCP_SACK_RECOVERIES,
)
from worker.hostio cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, msghdr, sendmsg, shutdown
from worker.lists cimport list_add, list_empty, list_pop
from worker.readiness cimport READY_EDGE, READY_IN, READY_OUT, ready_modify, ready_rearm
from worker.ring cimport ring_reserve, ring_slices, ring_write_at
from worker.segments cimport emit_reset
from worker.tcp.receiver cimport tcp_delivered, tcp_receive
from worker.tcp.tcb cimport (
    CLOSED, EV_ACKED, EV_BAD_ACK, EV_DATA, EV_DROPPED, EV_DSACK, EV_ESTABLISHED, EV_RECOVERY, EV_REOPEN, EV_RESET,
    TIME_WAIT, Delivery,
)
from worker.tcp_flows cimport abort, close_host, destroy, schedule, share_window, want_output
from worker.wire.tcp cimport TCP_RST

cdef enum:
    FLUSH_IOVS = 1024
    EPOCH = 20000  # us over which flows count as active


cdef void keep_slice(Core* core, TcpFlow* flow, const Delivery* data) noexcept nogil:
    cdef Slice* piece = &core.slices[core.slice_count]
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


cdef bint is_delivered(const TcpFlow* flow) noexcept nogil:
    """The host socket has taken all that is in order."""
    return flow.tcb.rcv.used == 0 and flow.sliced == 0


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
            share_window(core, flow)


cdef void count_events(Core* core, const TcpFlow* flow, int events) noexcept nogil:
    """The rare ones."""
    if events & EV_ESTABLISHED:
        count(core, C_TCP_ESTABLISHED)
    if events & EV_RECOVERY:
        count(core, C_TCP_SACK_RECOVERIES if flow.tcb.sack_ok else C_TCP_FAST_RECOVERIES)
    if events & EV_DSACK:
        count(core, C_TCP_DSACKS)


cdef bint tcp_from_guest(Core* core, TcpFlow* flow, const TcpView* s) noexcept nogil:
    """A segment of a known connection; what it brings to the host socket is done when the batch is.

    True: it opens a new connection in the place of this one, which is in TIME-WAIT.
    """
    cdef Delivery delivery
    cdef int before
    cdef int events
    if core.slice_count == MAX_SLICES:
        # while every flow's slices are still all that came before
        tcp_batch_done(core)
        if flow.dead:
            return False
    before = flow.tcb.state
    events = tcp_receive(&flow.tcb, s, core.now, &core.pool, &delivery)
    if events & EV_REOPEN:
        return is_delivered(flow)  # else the guest's next SYN finds it so
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
    if events & (EV_ESTABLISHED | EV_RECOVERY | EV_DSACK):
        count_events(core, flow, events)
    if events & EV_DATA:
        note_active(core, flow)
        keep_slice(core, flow, &delivery)
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


cdef void watch_out(Core* core, TcpFlow* flow) noexcept nogil:
    """Be told when the host socket takes more."""
    if flow.watches_out:
        ready_rearm(&core.ready, flow.fd, READY_OUT)
    else:
        flow.watches_out = True
        ready_modify(&core.ready, flow.fd, token_of(TAG_TCP, flow), READY_IN | READY_OUT | READY_EDGE)


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
            watch_out(core, flow)
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
    if flow.dead or not is_delivered(flow):
        return
    if flow.tcb.state == CLOSED:
        destroy(core, flow, False)
    elif flow.tcb.state == TIME_WAIT:
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
