# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""How TCP flows come to be: the guest dials out, or the host comes in by a forwarded port.

A connection that the guest opens is answered when the host connection is up; a refusal on either side is passed on
as RST, an unreachable host as ICMP, silence as silence.
"""

from libc.errno cimport EACCES, EALREADY, ECONNABORTED, EINPROGRESS, EINTR, ENETUNREACH, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from worker.clients cimport client_as_seen, next_ephemeral_port
from worker.core cimport FLOW_TCP, TAG_TCP, TcpFlow, UpcallEntry, count, count_by, token_of
from worker.counters cimport (
    C_FLOW_BYTES_TO_GUEST, C_SYSCALLS_CONTROL, C_TCP_NO_FLOW, C_TCP_NO_PORT, C_TCP_OPENED_BY_GUEST,
    C_TCP_OPENED_BY_HOST, C_TCP_OUT_OF_MEMORY, C_TCP_RESETS_SENT,
)
from worker.flow_table cimport table_find
from worker.hostio cimport (
    AF_INET, AF_UNIX, IPPROTO_TCP, SO_KEEPALIVE, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SocketName,
    TCP_NODELAY, accept4, connect, from_name, moorage_prepare, reset_on_close, set_option, sockaddr, sockaddr_in,
    socket, socketpair, socklen_t, to_sockaddr,
)
from worker.lists cimport list_add
from worker.readiness cimport READY_EDGE, READY_IN, READY_OUT, ready_add, ready_rearm
from worker.ring cimport ring_reserve, ring_write_at
from worker.segments cimport emit_reset
from worker.tcp.receiver cimport tcp_connect, tcp_hold_syn
from worker.tcp_flows cimport connect_failed, destroy, host_is_up, new_flow, want_output
from worker.upcall_queue cimport UPCALL_STREAM, upcall_push
from worker.wire.addr cimport Addr, addr_is_v4, is_loopback
from worker.wire.ipv4 cimport IPV4_HEADER_LEN
from worker.wire.tcp cimport TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN

cdef enum:
    ACTION_LOCAL = 2  # worker.upcalls.Action
    ACCEPT_QUANTUM = 64


cdef int start_connect(int fd, const Addr* host, uint16_t port) noexcept nogil:
    """Connect without waiting: 0, EINPROGRESS or another errno.

    To the host's own loopback the handshake is over when `connect` returns, though it says EINPROGRESS: asking again
    spares the flow a turn of the loop.
    """
    cdef sockaddr_in name
    to_sockaddr(&name, host, port)
    if connect(fd, <sockaddr*>&name, sizeof(name)) == 0:
        return 0
    if errno == EINPROGRESS and is_loopback(host) and connect(fd, <sockaddr*>&name, sizeof(name)) == 0:
        return 0
    return EINPROGRESS if errno in (EINTR, EALREADY) else errno


cdef void dial(Core* core, TcpFlow* flow, const Verdict* verdict) noexcept nogil:
    cdef int error
    if not addr_is_v4(&verdict.host):
        connect_failed(core, flow, ENETUNREACH)
        return
    flow.fd = moorage_prepare(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0))
    if flow.fd < 0:
        connect_failed(core, flow, errno)
        return
    set_option(flow.fd, IPPROTO_TCP, TCP_NODELAY, 1)
    if not is_loopback(&verdict.host):  # a peer on this host cannot vanish without a word
        set_option(flow.fd, SOL_SOCKET, SO_KEEPALIVE, 1)
    error = start_connect(flow.fd, &verdict.host, verdict.host_port)
    if error != 0 and error != EINPROGRESS:
        connect_failed(core, flow, error)
        return
    flow.connecting = error != 0
    count(core, C_SYSCALLS_CONTROL)
    flow.watches_out = flow.connecting
    error = ready_add(
        &core.ready, flow.fd, token_of(TAG_TCP, flow), READY_IN | READY_EDGE | (READY_OUT if flow.connecting else 0)
    )
    if error:
        connect_failed(core, flow, error)
    elif not flow.connecting:
        host_is_up(core, flow)


cdef void open_local(Core* core, TcpFlow* flow) noexcept nogil:
    """A service of the gateway's own: Python gets the other end of a socket pair."""
    cdef int ends[2]
    cdef UpcallEntry* entry
    if socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0:
        connect_failed(core, flow, errno)
        return
    entry = upcall_push(core, UPCALL_STREAM, NULL, 0)
    flow.fd = moorage_prepare(ends[0])
    if entry == NULL:
        close(ends[1])
        connect_failed(core, flow, EACCES)
        return
    entry.number = ends[1]
    entry.src = flow.head.key.guest
    entry.sport = flow.head.key.guest_port
    entry.dst = flow.head.key.peer
    entry.dport = flow.head.key.peer_port
    if ready_add(&core.ready, flow.fd, token_of(TAG_TCP, flow), READY_IN | READY_EDGE):
        connect_failed(core, flow, EACCES)
        return
    host_is_up(core, flow)


cdef void tcp_new_flow(
    Core* core, const FlowKey* key, const Ipv4View* ip, const TcpView* s, const Verdict* verdict
) noexcept nogil:
    """The guest's SYN to a destination that may be reached."""
    cdef TcpFlow* flow = new_flow(core, key)
    if flow == NULL:
        emit_reset(core, key, 0, s.seq + 1, TCP_RST | TCP_ACK)
        return
    memcpy(flow.quote, ip.header, IPV4_HEADER_LEN)
    memcpy(flow.quote + IPV4_HEADER_LEN, ip.payload.pos, 8)
    tcp_hold_syn(&flow.tcb, s, core.now)
    count(core, C_TCP_OPENED_BY_GUEST)
    if verdict.action == ACTION_LOCAL:
        open_local(core, flow)
    else:
        dial(core, flow, verdict)


cdef void tcp_no_flow(Core* core, const FlowKey* key, const TcpView* s) noexcept nogil:
    """A segment of no connection (RFC 9293 3.10.7.1)."""
    count(core, C_TCP_NO_FLOW)
    if s.flags & TCP_RST:
        return
    count(core, C_TCP_RESETS_SENT)
    if s.flags & TCP_ACK:
        emit_reset(core, key, s.ack, 0, TCP_RST)
    else:
        emit_reset(
            core, key, 0, s.seq + s.length + ((s.flags & TCP_SYN) != 0) + ((s.flags & TCP_FIN) != 0), TCP_RST | TCP_ACK
        )


cdef bint choose_port(Core* core, FlowKey* key) noexcept nogil:
    """Keep the client's port where it has one and no other flow looks the same; False: no port is free."""
    cdef int _
    if key.peer_port != 0 and table_find(&core.flows, key) == NULL:
        return True
    for _ in range(16384):
        key.peer_port = next_ephemeral_port(core)
        if table_find(&core.flows, key) == NULL:
            return True
    count(core, C_TCP_NO_PORT)
    return False


cdef TcpFlow* call_guest(
    Core* core, int fd, const Addr* guest, uint16_t guest_port, const Addr* client, uint16_t client_port
) noexcept nogil:
    """Open a connection to a port of the guest for a host socket, which is ours from now on; NULL: it cannot be.

    `client` is as the guest is to see it; port 0: any.
    """
    cdef FlowKey key
    cdef TcpFlow* flow = NULL
    memset(&key, 0, sizeof(key))
    key.guest = guest[0]
    key.guest_port = guest_port
    key.peer = client[0]
    key.peer_port = client_port
    key.proto = FLOW_TCP
    if choose_port(core, &key):
        flow = new_flow(core, &key)
    if flow == NULL:
        reset_on_close(fd)
        close(fd)
        return NULL
    flow.fd = fd
    flow.from_host = True
    flow.host_writable = True
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1)
    count(core, C_TCP_OPENED_BY_HOST)
    count(core, C_SYSCALLS_CONTROL)
    if ready_add(&core.ready, fd, token_of(TAG_TCP, flow), READY_IN | READY_EDGE):
        destroy(core, flow, True)
        return NULL
    tcp_connect(&flow.tcb)
    want_output(core, flow)
    return flow


cdef void send_first(Core* core, TcpFlow* flow, const uint8_t* data, uint32_t length) noexcept nogil:
    """What goes to the guest before anything that is read from the host socket; at most RING_MAX bytes."""
    if not ring_reserve(&core.pool, &flow.tcb.snd, length):
        count(core, C_TCP_OUT_OF_MEMORY)
        destroy(core, flow, True)
        return
    ring_write_at(&flow.tcb.snd, 0, data, length)
    flow.tcb.snd.used = length
    flow.to_guest += length
    count_by(core, C_FLOW_BYTES_TO_GUEST, length)


cdef void tcp_accept(Core* core, Listener* listener) noexcept nogil:
    """Take connections of a forwarded port; what is left waits for the next turn."""
    cdef SocketName name
    cdef Addr client
    cdef uint16_t port
    cdef socklen_t length
    cdef int fd
    cdef int _
    for _ in range(ACCEPT_QUANTUM):
        memset(&name, 0, sizeof(name))
        length = sizeof(name)
        fd = accept4(listener.fd, &name.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
        count(core, C_SYSCALLS_CONTROL)
        if fd < 0:
            if errno == ECONNABORTED or errno == EINTR:
                continue  # that client has gone; the next one waits
            listener.readable = False
            ready_rearm(&core.ready, listener.fd, READY_IN)
            return
        if from_name(&name, &client, &port):
            if not is_loopback(&client):
                set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
            client = client_as_seen(core, &client, listener.keep_source)
        else:  # of a unix socket, whose clients have no address
            client = core.gateway_ip
            port = 0
        call_guest(core, fd, &listener.guest, listener.guest_port, &client, port)
    list_add(&core.listener_queue, &listener.host_queue)
