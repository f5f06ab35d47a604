# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""One turn of the engine: wait for readiness, take what the link and the host sockets have, send what there is.

Only what is bounded happens in a turn: one read of the link, a quantum of reads for each host socket, one batch to the
link; so no flow starves another, and Python waits at most a turn for its own descriptors.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport strerror

from worker.capture cimport capture_flush
from worker.core cimport (
    FLOW_TCP, LINK_BROKEN, LINK_DRAINED, LINK_EOF, LINK_GARBLED, TAG_CAPTURE, TAG_LINK, TAG_LINK_OUT, TAG_LISTENER,
    TAG_PEER, TAG_PYTHON, TAG_TCP, Capture, Listener, Peer, TcpFlow, UdpFlow, count,
)
from worker.counters cimport C_SYSCALLS_WAIT
from worker.dispatch cimport batch_done, frame_to_gateway
from worker.ip.reassembly cimport reassembly_expire
from worker.link.kinds cimport link_flush, link_receive
from worker.link.output cimport out_pending, out_watch
from worker.link.stream cimport stream_receive_bytes
from worker.lists cimport list_add, list_empty, list_pop
from worker.readiness cimport READY_BATCH, READY_ERR, READY_IN, READY_OUT, READY_RDHUP, ready_wait
from worker.switch.from_peers cimport switch_event, switch_receive, switch_sent, switch_waits
from worker.switch.peers cimport peers_bury
from worker.tcp_flows cimport tcp_bury, tcp_next_delayed_ack, tcp_send_delayed_acks, tcp_timer

from worker.tcp_opening cimport tcp_accept
from worker.tcp_to_guest cimport tcp_host_event, tcp_serve_host_queue, tcp_serve_out_queue
from worker.timers cimport Timer, wheel_expired, wheel_next
from worker.udp_flows cimport udp_bury, udp_host_event, udp_read_listener, udp_serve, udp_timer
from worker.upcall_queue cimport UPCALL_LINK_CLOSED, upcall_text

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* out)
    enum:
        CLOCK_MONOTONIC

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout)
    enum:
        POLLOUT

cdef enum:
    LISTENER_QUANTUM = 64
    BATCHES_PER_TURN = 4
    LINK_PATIENCE = 5000  # us


cdef int64_t clock_us() noexcept nogil:
    """The monotonic clock, microseconds."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000 + t.tv_nsec // 1000


cdef void close_link(Core* core, const char* reason, bint by_guest) noexcept nogil:
    if not core.link_closed:
        core.link_closed = True
        core.link_readable = False
        upcall_text(core, UPCALL_LINK_CLOSED, reason, by_guest)


cdef void note_link(Core* core, int result, unsigned int detail) noexcept nogil:
    """What reading the link came to."""
    cdef char reason[80]
    if result == LINK_EOF:
        close_link(core, b"eof", True)
    elif result == LINK_BROKEN:
        snprintf(reason, sizeof(reason), b"%s", strerror(<int>detail))
        close_link(core, reason, True)
    elif result == LINK_GARBLED:
        if core.resync:
            close_link(core, b"no frame boundary found after the worker's restart", False)
        else:
            snprintf(reason, sizeof(reason), b"frame length %u is over the limit of 131072", detail)
            close_link(core, reason, True)
    elif result == LINK_DRAINED and not core.link_ended:
        core.link_readable = False


cdef void read_link(Core* core) noexcept nogil:
    cdef unsigned int detail = 0
    cdef int result = link_receive(core, &detail)
    note_link(core, result, detail)


cdef void handle_received(Core* core, const unsigned char* data, size_t length) noexcept nogil:
    """Handle bytes of a stream link that were read before the engine had it."""
    cdef unsigned int detail = 0
    cdef int result = stream_receive_bytes(core, data, length, &detail)
    note_link(core, result, detail)


cdef int take_events(Core* core, ReadyEvent* events, int n, ReadyEvent* python_events) noexcept nogil:
    """Note what is ready; how many of the events are Python's."""
    cdef int found = 0
    cdef int i
    cdef uint64_t token
    cdef void* pointer
    cdef int tag
    cdef uint32_t what
    for i in range(n):
        token = events[i].token
        what = events[i].events
        tag = <int>(token >> 56)
        pointer = <void*>(token & <uint64_t>0x00FFFFFFFFFFFFFF)
        if tag == TAG_TCP:
            tcp_host_event(core, <TcpFlow*>pointer, what)
        elif tag == TAG_LINK:
            if what & (READY_IN | READY_RDHUP | READY_ERR):
                core.link_readable = not core.link_closed
            if what & (READY_RDHUP | READY_ERR):
                core.link_ended = True
            if what & READY_OUT:
                core.out.blocked = False
                out_watch(core, False)
        elif tag == TAG_LINK_OUT:
            core.out.blocked = False  # or broken, which the next write tells
            out_watch(core, False)
        elif tag == TAG_PYTHON:
            python_events[found] = events[i]
            found += 1
        elif tag == TAG_PEER:
            switch_event(core, <Peer*>pointer, what)
        elif tag == TAG_LISTENER:
            if not (<Listener*>pointer).dead:
                list_add(&core.listener_queue, &(<Listener*>pointer).host_queue)
        elif tag == TAG_CAPTURE:
            (<Capture*>pointer).blocked = False
            (<Capture*>pointer).hung_up = what & (READY_RDHUP | READY_ERR) != 0
        else:
            udp_host_event(core, <UdpFlow*>pointer, what)
    return found


cdef void serve_listeners(Core* core) noexcept nogil:
    cdef Listener* listener
    cdef int _
    for _ in range(LISTENER_QUANTUM):
        if core.out.blocked or list_empty(&core.listener_queue):
            return
        listener = <Listener*>list_pop(&core.listener_queue)
        if listener.proto == FLOW_TCP:
            tcp_accept(core, listener)
        elif udp_read_listener(core, listener):
            list_add(&core.listener_queue, &listener.host_queue)


cdef void send(Core* core) noexcept nogil:
    """Fill and send batches while the link takes them."""
    cdef int result = 0
    cdef int _
    if core.link_closed:
        return
    for _ in range(BATCHES_PER_TURN):
        if not core.out.blocked:
            tcp_serve_out_queue(core)
        if core.out.blocked or not out_pending(core):
            return
        result = link_flush(core)
        if result < 0:
            close_link(core, strerror(-result), True)
            return
        if list_empty(&core.out_queue):
            return


cdef void expire(Core* core) noexcept nogil:
    cdef Timer* timer = wheel_expired(&core.wheel, core.now)
    while timer != NULL:
        if timer.kind == FLOW_TCP:
            tcp_timer(core, <TcpFlow*>timer.owner)
        else:
            udp_timer(core, <UdpFlow*>timer.owner)
        timer = wheel_expired(&core.wheel, core.now)
    tcp_send_delayed_acks(core)
    reassembly_expire(core)


cdef void bury(Core* core) noexcept nogil:
    """Free what died in this turn: no event names it any more."""
    tcp_bury(core)
    udp_bury(core)
    peers_bury(core)
    while not list_empty(&core.listener_grave):
        free(list_pop(&core.listener_grave))


cdef bint work_waits(Core* core) noexcept nogil:
    """Something can be done without waiting."""
    if core.link_readable:
        return True
    if core.out.blocked or core.link_closed:
        return False
    return out_pending(core) or switch_waits(core) or not (
        list_empty(&core.host_queue) and list_empty(&core.out_queue) and list_empty(&core.udp_queue)
        and list_empty(&core.listener_queue)
    )


cdef int timeout_ms(Core* core, int64_t deadline) noexcept nogil:
    cdef int64_t at = wheel_next(&core.wheel)
    cdef int64_t acks_at = tcp_next_delayed_ack(core)
    cdef int64_t left
    if core.datagram_count and (at == 0 or at > core.now + 1000000):
        at = core.now + 1000000
    if acks_at != 0 and (at == 0 or acks_at < at):
        at = acks_at
    if deadline >= 0 and (at == 0 or deadline < at):
        at = deadline
    if at == 0:
        return -1
    left = at - core.now
    if left <= 0:
        return 0
    return <int>((left + 999) // 1000) if left < 1000000000 else 1000000


cdef void handle_injected(Core* core, const unsigned char* frame, size_t length) noexcept nogil:
    """Handle a frame that Python hands back, memory and all; its checksum was looked at when it came."""
    core.checksum_is_known = True
    frame_to_gateway(core, frame, length)
    batch_done(core)
    core.checksum_is_known = False


cdef void wait_for_link(Core* core) noexcept nogil:
    """The link is full: nothing that comes in now lets anything out, so wait a moment for room alone.

    Without this every acknowledgment of a busy guest would wake the worker once.
    """
    cdef pollfd link
    link.fd = core.link_out_fd
    link.events = POLLOUT
    link.revents = 0
    if poll(&link, 1, 1) > 0:
        core.out.blocked = False
    count(core, C_SYSCALLS_WAIT)


cdef int run_until(Core* core, int64_t deadline, ReadyEvent* python_events) noexcept nogil:
    """Carry traffic until Python has something to do or `deadline` (us; negative: none) has passed; how many of
    Python's descriptors are ready."""
    cdef ReadyEvent events[READY_BATCH]
    cdef int found = 0
    cdef int n
    while True:
        core.now = clock_us()
        if core.out.blocked:
            if core.now - core.out.blocked_at < LINK_PATIENCE:
                wait_for_link(core)
            else:
                out_watch(core, True)
        n = ready_wait(
            &core.ready, events, 0 if work_waits(core) or core.upcalls.count else timeout_ms(core, deadline)
        )
        count(core, C_SYSCALLS_WAIT)
        core.now = clock_us()
        found = take_events(core, events, n, python_events)
        if core.link_readable:
            read_link(core)
        switch_receive(core)
        tcp_serve_host_queue(core)
        udp_serve(core)
        serve_listeners(core)
        expire(core)
        send(core)
        switch_sent(core)
        if core.captures != NULL:
            capture_flush(core)
        bury(core)
        if found or core.upcalls.count or (deadline >= 0 and core.now >= deadline):
            return found
