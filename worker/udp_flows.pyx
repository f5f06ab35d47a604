# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""UDP: the guest's mappings, and forwarded ports (RFC 768, RFC 4787).

A mapping belongs to a guest's address and port and has one host socket, whatever the destination (endpoint-independent
mapping, RFC 4787 REQ-1), and takes datagrams from anybody (REQ-8, the transparent choice). It lives three minutes
after the last datagram either way (REQ-5 asks for at least two), or, if all it ever did was to ask DNS or NTP, until
every question is answered. There is a hard cap; the least recently used mapping makes room. A forwarded port has the
listener's socket, and a flow for each client, so that the guest sees each client's own address.

Errors of the network come back through the socket's error queue and go to the guest as ICMP.
"""

from libc.errno cimport EAGAIN, EMSGSIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close

from worker.clients cimport client_as_seen, next_ephemeral_port
from worker.core cimport (
    FLOW_UDP, TAG_UDP, HostQueue, Listener, count, count_by, token_of,
)
from worker.counters cimport (
    C_FLOW_BYTES_FROM_GUEST, C_FLOW_BYTES_TO_GUEST, C_SYSCALLS_CONTROL, C_SYSCALLS_HOST_RECV, C_SYSCALLS_HOST_SEND,
    C_UDP_EVICTED, C_UDP_EXPIRED, C_UDP_OPENED, C_UDP_SEND_ERRORS, C_UDP_TX_DATAGRAMS,
)
from worker.datagrams cimport (
    DATAGRAM_BATCH, DatagramBatch, datagram_answer, datagram_payload, datagrams_receive, datagrams_send,
)
from worker.flow_table cimport table_find, table_insert, table_remove
from worker.hostio cimport (
    AF_INET, SO_RCVBUF, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, SocketName, from_name, moorage_prepare,
    name_length, set_option, socket, to_sockaddr,
)
from worker.icmp_errors cimport icmp_error, unreachable_code
from worker.link.output cimport out_commit, out_fifo_room, out_pending, out_reserve
from worker.link.vnet cimport VNET_GSO_NONE, VNET_HEADER_LEN, put_vnet_offload
from worker.lists cimport Node, list_add, list_append, list_empty, list_pop, list_remove, node_init
from worker.readiness cimport (
    READY_EDGE, READY_ERR, READY_IN, ready_add, ready_rearm, ready_remove,
)
from worker.socket_errors cimport HostError, errors_enable, errors_next
from worker.timers cimport wheel_arm, wheel_disarm
from worker.wire.addr cimport addr_eq, addr_from_v4, is_loopback
from worker.wire.checksum cimport csum_add, csum_fold, csum_partial16
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, put_ethernet
from worker.wire.icmp cimport ICMP_FRAGMENTATION_NEEDED, ICMP_UNREACHABLE
from worker.wire.ipv4 cimport IPPROTO_UDP_, IPV4_HEADER_LEN, IPV4_MF, pseudo_sum, put_ipv4
from worker.wire.udp cimport UDP_HEADER_LEN, put_udp

cdef enum:
    READ_QUANTUM = 32  # errors of one socket before the next socket's turn
    MAX_SEND_TRIES = 3
    HEADERS_ROOM = 4096  # for the headers of a datagram's fragments at the smallest MTU
    SERVE_QUANTUM = 64
    RECEIVE_QUEUE = 1048576  # bytes asked of the host for a busy socket; it gives less where net.core.rmem_max says so
    HEADERS_LEN = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN
    CHECKSUM_AT = 6  # in the UDP header
    FALLBACK_MTU = 1280  # told to a guest whose datagram is too big for a path that does not say its MTU


# --- frames to the guest ---------------------------------------------------------------------------------------------


cdef bint send_fragments(
    Core* core, const Addr* src, const Addr* dst, const uint8_t* dst_mac, const uint8_t* datagram, size_t length
) noexcept nogil:
    """RFC 791 section 3.2, 'An Example Fragmentation Procedure'; all pieces or none."""
    cdef size_t piece = (core.mtu - IPV4_HEADER_LEN) & ~<size_t>7
    cdef size_t offset = 0
    cdef size_t n
    cdef uint8_t* p
    if length + (length // piece + 1) * 64 > out_fifo_room(core):
        out_reserve(core, 1 << 30)  # counts the drop
        return False
    core.next_ident += 1
    while offset < length:
        n = piece if piece < length - offset else length - offset
        p = out_reserve(core, ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + n)
        if p == NULL:
            return False
        put_ethernet(p, dst_mac, core.gateway_mac, ETHERTYPE_IPV4)
        put_ipv4(
            p + ETHERNET_HEADER_LEN, src, dst, IPPROTO_UDP_, n, core.next_ident,
            <unsigned int>(offset >> 3) | (IPV4_MF if offset + n < length else 0),
        )
        memcpy(p + ETHERNET_HEADER_LEN + IPV4_HEADER_LEN, datagram + offset, n)
        out_commit(core, ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + n)
        offset += n
    return True


cdef bint udp_to_guest(
    Core* core, const Addr* src, uint16_t sport, const Addr* dst, uint16_t dport, const uint8_t* dst_mac,
    const uint8_t* payload, size_t length
) noexcept nogil:
    """Queue a datagram of at most UDP_MAX_PAYLOAD bytes, in fragments where the MTU asks for it; False: no room."""
    cdef size_t total = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + UDP_HEADER_LEN + length
    cdef uint64_t checksum = pseudo_sum(src, dst, IPPROTO_UDP_, UDP_HEADER_LEN + length)
    cdef uint8_t* p
    cdef uint8_t* header
    cdef bint whole = total - ETHERNET_HEADER_LEN <= core.mtu
    if whole:
        p = out_reserve(core, total)
        if p == NULL:
            return False
        header = p + HEADERS_LEN
    else:
        header = core.scratch
    put_udp(header, sport, dport, length, 0)
    memset(header + 6, 0, 2)
    if payload != header + UDP_HEADER_LEN:
        memcpy(header + UDP_HEADER_LEN, payload, length)
    if whole and core.offloads:
        put_vnet_offload(
            p - VNET_HEADER_LEN, VNET_GSO_NONE, HEADERS_LEN + UDP_HEADER_LEN, 0, HEADERS_LEN, CHECKSUM_AT
        )
        put_udp(header, sport, dport, length, csum_partial16(checksum))
    else:
        checksum = csum_add(checksum, header, UDP_HEADER_LEN + length)
        put_udp(header, sport, dport, length, csum_fold(checksum))
    count(core, C_UDP_TX_DATAGRAMS)
    if not whole:
        return send_fragments(core, src, dst, dst_mac, header, UDP_HEADER_LEN + length)
    put_ethernet(p, dst_mac, core.gateway_mac, ETHERTYPE_IPV4)
    put_ipv4(p + ETHERNET_HEADER_LEN, src, dst, IPPROTO_UDP_, UDP_HEADER_LEN + length, core.next_ident, 0)
    core.next_ident += 1
    out_commit(core, total)
    return True


# --- mappings --------------------------------------------------------------------------------------------------------


cdef FlowKey mapping_key(const FlowKey* key) noexcept nogil:
    """A mapping's key has no peer: it is the same for all."""
    cdef FlowKey own
    memset(&own, 0, sizeof(own))
    own.guest = key.guest
    own.guest_port = key.guest_port
    own.proto = FLOW_UDP
    return own


cdef void destroy(Core* core, UdpFlow* flow) noexcept nogil:
    if flow.dead:
        return
    flow.dead = True
    if flow.listener == NULL and flow.fd >= 0:
        if core.ready.epoll_fd < 0:
            ready_remove(&core.ready, flow.fd)
        close(flow.fd)
    elif flow.listener != NULL:
        flow.listener.clients -= 1
    flow.fd = -1
    if core.sender == flow:
        core.sender = NULL
        core.sending.count = 0
    table_remove(&core.flows, &flow.head)
    core.udp_count -= 1
    wheel_disarm(&flow.timer)
    list_remove(&flow.lru)
    list_remove(&flow.host_queue)
    list_append(&core.udp_grave, &flow.grave)


cdef void udp_bury(Core* core) noexcept nogil:
    """Free the flows that died in this turn."""
    cdef void* flow
    while not list_empty(&core.udp_grave):
        flow = list_pop(&core.udp_grave)
        free(flow)


cdef UdpFlow* new_flow(Core* core, const FlowKey* key) noexcept nogil:
    cdef UdpFlow* flow
    if core.udp_count >= core.max_udp_flows:
        count(core, C_UDP_EVICTED)
        destroy(core, <UdpFlow*>core.udp_lru.next.owner)
    flow = <UdpFlow*>calloc(1, sizeof(UdpFlow))
    if flow == NULL:
        return NULL
    flow.head.key = key[0]
    flow.fd = -1
    node_init(&flow.timer.node, &flow.timer)
    flow.timer.kind = FLOW_UDP
    flow.timer.owner = flow
    node_init(&flow.lru, flow)
    node_init(&flow.host_queue, flow)
    node_init(&flow.grave, flow)
    if not table_insert(&core.flows, &flow.head):
        free(flow)
        return NULL
    core.udp_count += 1
    list_append(&core.udp_lru, &flow.lru)
    count(core, C_UDP_OPENED)
    return flow


cdef void touch(Core* core, UdpFlow* flow) noexcept nogil:
    flow.last_used = core.now
    list_remove(&flow.lru)
    list_append(&core.udp_lru, &flow.lru)
    wheel_arm(&core.wheel, &flow.timer, core.now + core.udp_idle)


cdef UdpFlow* open_mapping(Core* core, const FlowKey* key) noexcept nogil:
    cdef UdpFlow* flow = new_flow(core, key)
    if flow == NULL:
        return NULL
    flow.one_shot = True
    flow.fd = moorage_prepare(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0))
    count(core, C_SYSCALLS_CONTROL)
    if flow.fd < 0 or ready_add(&core.ready, flow.fd, token_of(TAG_UDP, flow), READY_IN | READY_EDGE):
        count(core, C_UDP_SEND_ERRORS)
        destroy(core, flow)
        return NULL
    errors_enable(flow.fd)
    return flow


cdef UdpFlow* udp_find(const Core* core, const FlowKey* key) noexcept nogil:
    """The flow of a forwarded port's client that this datagram goes to, or NULL."""
    return <UdpFlow*>table_find(&core.flows, key)


cdef void udp_carry(
    Core* core, const FlowKey* key, const Ipv4View* ip, const UdpView* u, const Verdict* verdict
) noexcept nogil:
    """A guest's datagram to a destination that may be reached; it is sent when the batch of frames is done."""
    cdef FlowKey own = mapping_key(key)
    cdef UdpFlow* flow = <UdpFlow*>table_find(&core.flows, &own)
    cdef DatagramBatch* batch = &core.sending
    if flow == NULL or flow != core.sender or batch.count == DATAGRAM_BATCH:
        udp_batch_done(core)
    if flow == NULL:
        flow = open_mapping(core, &own)
        if flow == NULL:
            return
    if u.dport != 53 and u.dport != 123:
        flow.one_shot = False
    touch(core, flow)
    flow.sent += 1
    core.sender = flow
    to_sockaddr(&batch.names[batch.count].v4, &verdict.host, verdict.host_port)
    batch.payloads[batch.count] = u.payload
    batch.lengths[batch.count] = u.length
    core.sending_headers[batch.count] = ip.header
    core.sending_header_lens[batch.count] = <uint8_t>ip.header_len
    batch.count += 1


cdef bint send_failed(Core* core, UdpFlow* flow, int at, int error) noexcept nogil:
    """Datagram `at` was not sent; True: another try may help, for the error was an earlier datagram's."""
    cdef Addr dst
    if error == EMSGSIZE:
        dst = addr_from_v4(core.sending_headers[at] + 16)
        icmp_error(
            core, &dst, ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, FALLBACK_MTU, core.sending_headers[at],
            core.sending_header_lens[at] + 8,
        )
    elif error != EAGAIN:
        read_errors(core, flow)
        return True
    return False


cdef void tell_unsent(Core* core, int at, int error) noexcept nogil:
    """Datagram `at` cannot be sent at all: tell the guest, where ICMP has words for it."""
    cdef int code = unreachable_code(error)
    if code >= 0:
        icmp_error(
            core, &core.gateway_ip, ICMP_UNREACHABLE, <uint8_t>code, 0, core.sending_headers[at],
            core.sending_header_lens[at] + UDP_HEADER_LEN,
        )


cdef void udp_batch_done(Core* core) noexcept nogil:
    """All frames at hand are read: send the datagrams that wait, before the frames' memory is used again."""
    cdef UdpFlow* flow = core.sender
    cdef int first = 0
    cdef int tries = 0
    cdef int n
    cdef int i
    core.sender = NULL
    while first < core.sending.count:
        n = datagrams_send(&core.sending, flow.fd, first)
        count(core, C_SYSCALLS_HOST_SEND)
        if n < 0:
            tries += 1
            if send_failed(core, flow, first, -n) and tries < MAX_SEND_TRIES:
                continue
            count(core, C_UDP_SEND_ERRORS)
            tell_unsent(core, first, -n)
            n = 1
            tries = 0
        else:
            for i in range(first, first + n):
                flow.from_guest += core.sending.lengths[i]
                count_by(core, C_FLOW_BYTES_FROM_GUEST, core.sending.lengths[i])
        first += n
    core.sending.count = 0


cdef void udp_to_client(Core* core, UdpFlow* flow, const UdpView* u) noexcept nogil:
    """The guest answers a client of a forwarded port."""
    touch(core, flow)
    count(core, C_SYSCALLS_HOST_SEND)
    if not datagram_answer(flow.fd, u.payload, u.length, &flow.client, &flow.asked_at):
        count(core, C_UDP_SEND_ERRORS)
        return
    flow.from_guest += u.length
    count_by(core, C_FLOW_BYTES_FROM_GUEST, u.length)


# --- from the host ---------------------------------------------------------------------------------------------------


cdef Addr seen_by_guest(const Core* core, const Addr* host_side) noexcept nogil:
    """The address by which the guest knows a host's address."""
    cdef int i
    for i in range(core.nat_count):
        if addr_eq(&core.nat[i].host_side, host_side):
            return core.nat[i].guest_side
    return host_side[0]


cdef void read_errors(Core* core, UdpFlow* flow) noexcept nogil:
    """Pass on what the network said about earlier datagrams, as ICMP about a datagram like them."""
    cdef HostError error
    cdef uint8_t quote[IPV4_HEADER_LEN + UDP_HEADER_LEN]
    cdef Addr peer
    cdef Addr source
    cdef int _
    for _ in range(READ_QUANTUM):
        if not errors_next(flow.fd, &error):
            return
        peer = seen_by_guest(core, &error.destination)
        source = seen_by_guest(core, &error.offender) if error.has_offender else core.gateway_ip
        if is_loopback(&source):
            source = core.gateway_ip
        put_ipv4(quote, &flow.head.key.guest, &peer, IPPROTO_UDP_, UDP_HEADER_LEN, 0, 0)
        put_udp(quote + IPV4_HEADER_LEN, flow.head.key.guest_port, error.port, 0, 0)
        icmp_error(core, &source, error.kind, error.code, error.mtu, quote, sizeof(quote))


cdef int receive(Core* core, UdpFlow* flow, int fd, HostQueue* queue) noexcept nogil:
    """Fill the batch from a socket; how many datagrams, or -1: not now, but there may be more.

    It is read when the link's queue has room for a batch of the largest datagrams seen: what waits in the socket's
    own queue is not lost. That queue is widened, as far as the system allows, once a whole batch was in it.
    """
    cdef int n
    cdef int i
    if out_pending(core) and out_fifo_room(core) < DATAGRAM_BATCH * (<size_t>queue.largest + HEADERS_ROOM):
        return -1
    n = datagrams_receive(&core.received, fd)
    count(core, C_SYSCALLS_HOST_RECV)
    for i in range(n):
        if core.received.lengths[i] > queue.largest:
            queue.largest = <uint32_t>core.received.lengths[i]
    if n == DATAGRAM_BATCH:
        if not queue.widened:
            queue.widened = True
            set_option(fd, SOL_SOCKET, SO_RCVBUF, RECEIVE_QUEUE)
        return n
    if n < 0 and -n != EAGAIN:
        if flow != NULL:
            read_errors(core, flow)
        return -1
    ready_rearm(&core.ready, fd, READY_IN)
    return n if n > 0 else 0


cdef bint read_mapping(Core* core, UdpFlow* flow) noexcept nogil:
    """Carry what waits on a mapping's socket; True: there may be more."""
    cdef Addr peer
    cdef uint16_t port
    cdef int n = receive(core, flow, flow.fd, &flow.queue)
    cdef int i
    for i in range(n):
        if not from_name(&core.received.names[i], &peer, &port):
            continue
        peer = seen_by_guest(core, &peer)
        carry_to_guest(core, flow, &peer, port, i)
    if n > 0:
        touch(core, flow)
        flow.received += n
        if flow.one_shot and flow.received >= flow.sent:
            destroy(core, flow)
            return False
    return n == DATAGRAM_BATCH or n < 0


cdef void carry_to_guest(Core* core, UdpFlow* flow, const Addr* src, uint16_t sport, int i) noexcept nogil:
    """Datagram `i` of the batch received."""
    flow.to_guest += core.received.lengths[i]
    count_by(core, C_FLOW_BYTES_TO_GUEST, core.received.lengths[i])
    udp_to_guest(
        core, src, sport, &flow.head.key.guest, flow.head.key.guest_port, core.guest_mac,
        datagram_payload(&core.received, i), core.received.lengths[i],
    )


cdef UdpFlow* client_flow(Core* core, Listener* listener, const SocketName* name) noexcept nogil:
    """The flow of a client of a forwarded port, made when it is new; NULL: it cannot be."""
    cdef FlowKey key
    cdef Addr client
    cdef UdpFlow* flow
    cdef int _
    memset(&key, 0, sizeof(key))
    if not from_name(name, &client, &key.peer_port):
        return NULL
    key.guest = listener.guest
    key.guest_port = listener.guest_port
    key.proto = FLOW_UDP
    key.peer = client_as_seen(core, &client, listener.keep_source)
    for _ in range(64):
        flow = <UdpFlow*>table_find(&core.flows, &key)
        if flow == NULL:
            break
        if flow.listener == listener and memcmp(&flow.client, name, name_length(name)) == 0:
            return flow
        key.peer_port = next_ephemeral_port(core)
    flow = new_flow(core, &key)
    if flow != NULL:
        flow.listener = listener
        flow.fd = listener.fd
        flow.client = name[0]
        listener.clients += 1
    return flow


cdef bint udp_read_listener(Core* core, Listener* listener) noexcept nogil:
    """Carry what clients sent to a forwarded port; True: there may be more."""
    cdef UdpFlow* flow
    cdef int n = receive(core, NULL, listener.fd, &listener.queue)
    cdef int i
    for i in range(n):
        flow = client_flow(core, listener, &core.received.names[i])
        if flow != NULL:
            touch(core, flow)
            flow.asked_at = core.received.ancillary[i]
            carry_to_guest(core, flow, &flow.head.key.peer, flow.head.key.peer_port, i)
    return n == DATAGRAM_BATCH or n < 0


cdef void udp_host_event(Core* core, UdpFlow* flow, uint32_t events) noexcept nogil:
    if flow.dead:
        return
    if events & READY_ERR:
        read_errors(core, flow)
    list_add(&core.udp_queue, &flow.host_queue)


cdef bint udp_serve(Core* core) noexcept nogil:
    """Give every readable UDP socket one turn; True: some want another."""
    cdef UdpFlow* flow
    cdef int _
    for _ in range(SERVE_QUANTUM):
        if core.out.blocked or list_empty(&core.udp_queue):
            break
        flow = <UdpFlow*>list_pop(&core.udp_queue)
        if read_mapping(core, flow):
            list_add(&core.udp_queue, &flow.host_queue)
    return not core.out.blocked and not list_empty(&core.udp_queue)


cdef void udp_timer(Core* core, UdpFlow* flow) noexcept nogil:
    """The flow's slot in the wheel came up; it may have been used since."""
    if core.now < flow.last_used + core.udp_idle:
        wheel_arm(&core.wheel, &flow.timer, flow.last_used + core.udp_idle)
        return
    count(core, C_UDP_EXPIRED)
    destroy(core, flow)


cdef void udp_forget_clients(Core* core, Listener* listener) noexcept nogil:
    """A forward goes away, with the flows of its clients."""
    cdef Node* node = core.udp_lru.next
    cdef Node* following
    while node != &core.udp_lru:
        following = node.next
        if (<UdpFlow*>node.owner).listener == listener:
            destroy(core, <UdpFlow*>node.owner)
        node = following


cdef void udp_close_all(Core* core) noexcept nogil:
    """The engine closes."""
    while not list_empty(&core.udp_lru):
        destroy(core, <UdpFlow*>core.udp_lru.next.owner)
    udp_bury(core)
