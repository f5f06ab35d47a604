# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""TCP from host sockets to the guest.

A host socket is read straight into the flow's send ring, never more than the guest's window and the congestion window
let out, and the ring's bytes go to the link where they lie. So nothing is copied in user space, and a slow guest stops
the reading, and with it the host.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t
from posix.uio cimport iovec

from worker.core cimport Core, TcpFlow, count, count_by
from worker.counters cimport C_FLOW_BYTES_TO_GUEST, C_SYSCALLS_HOST_RECV, C_TCP_OUT_OF_MEMORY
from worker.hostio cimport SOL_SOCKET, SO_ERROR, getsockopt, readv, socklen_t
from worker.link.output cimport out_batch_full
from worker.lists cimport list_add, list_empty, list_pop
from worker.readiness cimport READY_ERR, READY_IN, READY_OUT, READY_RDHUP, ready_rearm
from worker.ring cimport RING_MAX, ring_release, ring_reserve, ring_slices
from worker.segments cimport emit_segment
from worker.tcp.scoreboard cimport send_room
from worker.tcp.sender cimport tcp_next_segment
from worker.tcp.tcb cimport ESTABLISHED, OutSegment, Tcb, in_flight
from worker.tcp_flows cimport abort, connect_failed, host_is_up, schedule, want_output
from worker.tcp_from_guest cimport flush_to_host

cdef enum:
    READ_MAX = 262144  # bytes of one read of a host socket
    READ_FIRST = 16384
    EMIT_QUANTUM = 64  # segments of one flow before the next flow's turn
    SERVE_QUANTUM = 256  # flows served before the link is looked at again


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
    cdef uint32_t enough = (t.snd_wnd if t.snd_wnd < t.cwnd else t.cwnd) >> 2
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
            ring_release(&core.pool, &t.snd)
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
    cdef int _
    for _ in range(SERVE_QUANTUM):
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
