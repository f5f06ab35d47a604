# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Frames from the guest, each to what is responsible for it.

ARP, DHCP, ICMP and datagrams to the gateway's own services go up to Python; segments and datagrams of flows stay here.
A destination that is not known yet goes up as well, once: Python answers with a verdict and hands the frame back.
Every frame that goes no further is counted by reason.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcmp, memcpy, memset

from worker.core cimport FLOW_TCP, FLOW_UDP, FlowKey, TcpFlow, UdpFlow, Verdict, count
from worker.counters cimport (
    C_ETHERNET_MALFORMED, C_ETHERNET_NOT_FOR_GATEWAY, C_ETHERNET_UNKNOWN_TYPE, C_ICMP_RX_ECHO,
    C_ICMP_RX_ECHO_REPLY, C_ICMP_RX_OTHER, C_ICMP_RX_REDIRECT, C_ICMP_RX_SOURCE_QUENCH, C_ICMP_RX_TIME_EXCEEDED,
    C_ICMP_RX_UNREACHABLE, C_IGMP_BAD_CHECKSUM, C_IGMP_MALFORMED, C_IGMP_RX_LEAVE, C_IGMP_RX_OTHER, C_IGMP_RX_QUERY,
    C_IGMP_RX_V1_REPORT, C_IGMP_RX_V2_REPORT, C_IGMP_RX_V3_REPORT,
    C_IPV4_BAD_CHECKSUM, C_IPV4_BAD_DESTINATION, C_IPV4_BAD_SOURCE, C_IPV4_MALFORMED, C_IPV4_OPTION_OTHER,
    C_IPV4_OPTION_RECORD_ROUTE, C_IPV4_OPTION_ROUTER_ALERT, C_IPV4_OPTION_TIMESTAMP, C_IPV4_RX_PACKETS,
    C_IPV4_UNKNOWN_PROTOCOL, C_TCP_BAD_CHECKSUM, C_TCP_MALFORMED, C_TCP_REFUSED,
    C_TCP_RX_SEGMENTS, C_UDP_BAD_CHECKSUM, C_UDP_MALFORMED, C_UDP_REFUSED, C_UDP_RX_DATAGRAMS,
)
from worker.flow_table cimport table_find
from worker.icmp_errors cimport icmp_error
from worker.ip.reassembly cimport Datagram, reassemble, reassembly_drop
from worker.lists cimport list_empty
from worker.switch.to_peers cimport switch_batch_done, switch_flood, switch_unicast
from worker.segments cimport emit_reset
from worker.tcp_flows cimport destroy
from worker.tcp_from_guest cimport tcp_batch_done, tcp_from_guest
from worker.tcp_opening cimport tcp_new_flow, tcp_no_flow
from worker.udp_flows cimport udp_batch_done, udp_carry, udp_find, udp_to_client
from worker.upcall_queue cimport UPCALL_ECHO, UPCALL_FRAME, UPCALL_GUEST, upcall_push, upcall_verdict
from worker.verdicts cimport verdict_find
from worker.wire._cursor cimport Cursor, cursor, has, skip
from worker.wire.addr cimport Addr, addr_eq, addr_in_prefix, addr_v4
from worker.wire.checksum cimport csum_add, csum_fold
from worker.wire.ethernet cimport (
    ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, EthernetView, parse_ethernet,
)
from worker.wire.icmp cimport (
    ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMP_HEADER_LEN, ICMP_INFORMATION_REPLY, ICMP_NET_UNREACHABLE,
    ICMP_PORT_UNREACHABLE, ICMP_REDIRECT, ICMP_SOURCE_QUENCH, ICMP_TIME_EXCEEDED, ICMP_UNREACHABLE,
)
from worker.wire.igmp cimport (
    IGMP_HEADER_LEN, IGMP_LEAVE_GROUP, IGMP_MEMBERSHIP_QUERY, IGMP_V1_REPORT, IGMP_V2_REPORT, IGMP_V3_REPORT,
    IPPROTO_IGMP_,
)
from worker.wire.ipv4 cimport (
    IPPROTO_ICMP_, IPPROTO_TCP_, IPPROTO_UDP_, IPV4_BAD_CHECKSUM, IPV4_HEADER_LEN, IPV4_OK, IPV4_OPTION_END,
    IPV4_OPTION_NOP, IPV4_OPTION_RECORD_ROUTE, IPV4_OPTION_ROUTER_ALERT, IPV4_OPTION_TIMESTAMP, Ipv4View, parse_ipv4,
    pseudo_sum,
)
from worker.wire.tcp cimport TCP_ACK, TCP_RST, TCP_SYN, TcpView, parse_tcp
from worker.wire.udp cimport UdpView, parse_udp

cdef enum:
    ACTION_CARRY = 1  # worker.upcalls.Action
    ACTION_LOCAL = 2
    ACTION_REFUSE = 3
    ACTION_UNREACHABLE = 4
    PORT_DHCP_SERVER = 67
    ICMP_PROTOCOL_UNREACHABLE = 2


cdef void tell_guest(Core* core) noexcept nogil:
    """Python learns the guest's MAC and address; an unknown address is told as none."""
    cdef uint8_t who[22]
    memcpy(who, core.guest_mac, 6)
    memcpy(who + 6, &core.guest_ip, 16)
    upcall_push(core, UPCALL_GUEST, who, 22)


cdef void note_mac(Core* core, const uint8_t* mac) noexcept nogil:
    if core.guest_mac_known and memcmp(core.guest_mac, mac, 6) == 0:
        return
    memcpy(core.guest_mac, mac, 6)
    core.guest_mac_known = True
    tell_guest(core)


cdef void batch_done(Core* core) noexcept nogil:
    """The frames handled so far leave their memory: move their payload on."""
    tcp_batch_done(core)
    udp_batch_done(core)
    switch_batch_done(core)


cdef void frame_from_guest(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    """Handle one Ethernet frame; the memory may be used again after the batch is done."""
    if length < ETHERNET_HEADER_LEN or frame[6] & 1:
        count(core, C_ETHERNET_MALFORMED)
    elif frame[0] & 1:
        if core.switch.joined:
            switch_flood(core, frame, length)
        frame_to_gateway(core, frame, length)
    elif memcmp(frame, core.gateway_mac, 6) == 0:
        frame_to_gateway(core, frame, length)
    elif core.switch.joined:
        switch_unicast(core, frame, length)
    else:
        count(core, C_ETHERNET_NOT_FOR_GATEWAY)


cdef void frame_to_gateway(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    """Handle a frame that is for the gateway, too."""
    cdef Cursor c = cursor(frame, length)
    cdef EthernetView ethernet
    if not parse_ethernet(&c, &ethernet):
        count(core, C_ETHERNET_MALFORMED)
        return
    note_mac(core, ethernet.src)
    if ethernet.ethertype == ETHERTYPE_IPV4:
        ipv4_from_guest(core, frame, length, &c)
    elif ethernet.ethertype == ETHERTYPE_ARP:
        upcall_push(core, UPCALL_FRAME, frame, length)
    else:
        count(core, C_ETHERNET_UNKNOWN_TYPE)


cdef bint source_is_right(Core* core, const Ipv4View* ip) noexcept nogil:
    """A guest speaks from its subnet, or from 0.0.0.0 while it has no address; and it is not the gateway."""
    cdef const uint8_t* v4 = addr_v4(&ip.src)
    if addr_eq(&ip.src, &core.guest_ip):
        return True
    if v4[0] == 0 and v4[1] == 0 and v4[2] == 0 and v4[3] == 0:
        return ip.proto == IPPROTO_UDP_
    if not addr_in_prefix(&ip.src, &core.subnet, core.prefix_bits) or addr_eq(&ip.src, &core.gateway_ip):
        return False
    core.guest_ip = ip.src
    tell_guest(core)
    return True


cdef void count_options(Core* core, const Ipv4View* ip) noexcept nogil:
    """A header's options, which nothing else looks at (RFC 791 section 3.1, RFC 2113), up to one that is broken."""
    cdef Cursor c = cursor(ip.header + IPV4_HEADER_LEN, ip.header_len - IPV4_HEADER_LEN)
    while c.left and c.pos[0] != IPV4_OPTION_END:
        if c.pos[0] == IPV4_OPTION_NOP:
            skip(&c, 1)
            continue
        if c.left < 2 or c.pos[1] < 2 or not has(&c, c.pos[1]):
            return
        if c.pos[0] == IPV4_OPTION_RECORD_ROUTE:
            count(core, C_IPV4_OPTION_RECORD_ROUTE)
        elif c.pos[0] == IPV4_OPTION_ROUTER_ALERT:
            count(core, C_IPV4_OPTION_ROUTER_ALERT)
        elif c.pos[0] == IPV4_OPTION_TIMESTAMP:
            count(core, C_IPV4_OPTION_TIMESTAMP)
        else:
            count(core, C_IPV4_OPTION_OTHER)
        skip(&c, c.pos[1])


cdef void ipv4_from_guest(Core* core, const uint8_t* frame, size_t length, const Cursor* c) noexcept nogil:
    cdef Ipv4View ip
    cdef Datagram* whole
    cdef Cursor inner
    cdef int error = parse_ipv4(c, &ip)
    count(core, C_IPV4_RX_PACKETS)
    if error != IPV4_OK:
        count(core, C_IPV4_BAD_CHECKSUM if error == IPV4_BAD_CHECKSUM else C_IPV4_MALFORMED)
        return
    if ip.header_len > IPV4_HEADER_LEN:
        count_options(core, &ip)
    if not source_is_right(core, &ip):
        count(core, C_IPV4_BAD_SOURCE)
        return
    if not ip.more_fragments and ip.fragment_offset == 0:
        transport(core, &ip, frame, length)
        return
    whole = reassemble(core, &ip)
    if whole == NULL:
        return
    memcpy(whole.data, frame, ETHERNET_HEADER_LEN)
    inner = cursor(whole.data + ETHERNET_HEADER_LEN, IPV4_HEADER_LEN + whole.length)
    if parse_ipv4(&inner, &ip) == IPV4_OK:
        transport(core, &ip, whole.data, ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + whole.length)
        batch_done(core)
    reassembly_drop(core, whole)


cdef void transport(Core* core, const Ipv4View* ip, const uint8_t* frame, size_t length) noexcept nogil:
    if ip.proto == IPPROTO_TCP_:
        tcp_segment(core, ip, frame, length)
    elif ip.proto == IPPROTO_UDP_:
        udp_datagram(core, ip, frame, length)
    elif ip.proto == IPPROTO_ICMP_:
        icmp_message(core, ip, frame, length)
    elif ip.proto == IPPROTO_IGMP_:
        count(core, igmp_counter(&ip.payload))
    else:
        count(core, C_IPV4_UNKNOWN_PROTOCOL)
        if not is_group(core, &ip.dst) and ip.payload.left >= 8:
            icmp_error(
                core, &core.gateway_ip, ICMP_UNREACHABLE, ICMP_PROTOCOL_UNREACHABLE, 0, ip.header, ip.header_len + 8
            )


cdef bint is_group(const Core* core, const Addr* dst) noexcept nogil:
    """Broadcast (limited, or of the subnet) or multicast (RFC 1122 3.2.1.3)."""
    cdef const uint8_t* v4 = addr_v4(dst)
    cdef int host_bits = 128 - core.prefix_bits
    cdef int i
    if v4[0] >= 224:
        return True
    if not addr_in_prefix(dst, &core.subnet, core.prefix_bits):
        return False
    for i in range(host_bits):
        if not (v4[3 - (i >> 3)] >> (i & 7)) & 1:
            return False
    return True


cdef FlowKey key_of(const Ipv4View* ip, uint16_t sport, uint16_t dport, unsigned int proto) noexcept nogil:
    cdef FlowKey key
    memset(&key, 0, sizeof(key))
    key.guest = ip.src
    key.peer = ip.dst
    key.guest_port = sport
    key.peer_port = dport
    key.proto = proto
    return key


cdef void tcp_segment(Core* core, const Ipv4View* ip, const uint8_t* frame, size_t length) noexcept nogil:
    cdef TcpView s
    cdef FlowKey key
    cdef TcpFlow* flow
    count(core, C_TCP_RX_SEGMENTS)
    if not parse_tcp(&ip.payload, &s):
        count(core, C_TCP_MALFORMED)
        return
    if not core.checksum_is_known and csum_fold(
        csum_add(pseudo_sum(&ip.src, &ip.dst, IPPROTO_TCP_, ip.payload.left), ip.payload.pos, ip.payload.left)
    ):
        count(core, C_TCP_BAD_CHECKSUM)
        return
    key = key_of(ip, s.sport, s.dport, FLOW_TCP)
    flow = <TcpFlow*>table_find(&core.flows, &key)
    if flow != NULL:
        if not tcp_from_guest(core, flow, &s):
            return
        destroy(core, flow, False)  # a new connection takes the place of one in TIME-WAIT
    if not s.flags & TCP_SYN or s.flags & (TCP_ACK | TCP_RST):
        if not is_group(core, &ip.dst):
            tcp_no_flow(core, &key, &s)
        return
    if is_group(core, &ip.dst):
        count(core, C_IPV4_BAD_DESTINATION)
        return
    new_connection(core, &key, ip, &s, frame, length)


cdef void no_route(Core* core, const Ipv4View* ip) noexcept nogil:
    icmp_error(core, &core.gateway_ip, ICMP_UNREACHABLE, ICMP_NET_UNREACHABLE, 0, ip.header, ip.header_len + 8)


cdef void new_connection(
    Core* core, const FlowKey* key, const Ipv4View* ip, const TcpView* s, const uint8_t* frame, size_t length
) noexcept nogil:
    cdef const Verdict* verdict = verdict_find(core, IPPROTO_TCP_, &ip.dst, s.dport)
    if verdict == NULL:
        upcall_verdict(core, IPPROTO_TCP_, &ip.dst, s.dport, frame, length)
    elif verdict.action == ACTION_CARRY or verdict.action == ACTION_LOCAL:
        tcp_new_flow(core, key, ip, s, verdict)
    else:
        count(core, C_TCP_REFUSED)
        if verdict.action == ACTION_REFUSE:
            emit_reset(core, key, 0, s.seq + s.length + 1, TCP_RST | TCP_ACK)
        elif verdict.action == ACTION_UNREACHABLE:
            no_route(core, ip)


cdef void udp_datagram(Core* core, const Ipv4View* ip, const uint8_t* frame, size_t length) noexcept nogil:
    cdef UdpView u
    cdef FlowKey key
    cdef UdpFlow* client
    count(core, C_UDP_RX_DATAGRAMS)
    if not parse_udp(&ip.payload, &u):
        count(core, C_UDP_MALFORMED)
        return
    if u.checksum and not core.checksum_is_known and csum_fold(
        csum_add(
            pseudo_sum(&ip.src, &ip.dst, IPPROTO_UDP_, u.length + 8), ip.payload.pos, u.length + 8
        )
    ):
        count(core, C_UDP_BAD_CHECKSUM)
        return
    if u.dport == PORT_DHCP_SERVER and (is_group(core, &ip.dst) or addr_eq(&ip.dst, &core.gateway_ip)):
        upcall_push(core, UPCALL_FRAME, frame, length)
        return
    if is_group(core, &ip.dst) or not addr_eq(&ip.src, &core.guest_ip):
        count(core, C_IPV4_BAD_DESTINATION)
        return
    key = key_of(ip, u.sport, u.dport, FLOW_UDP)
    if not list_empty(&core.listeners):
        client = udp_find(core, &key)
        if client != NULL:
            udp_to_client(core, client, &u)
            return
    new_datagram(core, &key, ip, &u, frame, length)


cdef void new_datagram(
    Core* core, const FlowKey* key, const Ipv4View* ip, const UdpView* u, const uint8_t* frame, size_t length
) noexcept nogil:
    cdef const Verdict* verdict = verdict_find(core, IPPROTO_UDP_, &ip.dst, u.dport)
    if verdict == NULL:
        upcall_verdict(core, IPPROTO_UDP_, &ip.dst, u.dport, frame, length)
    elif verdict.action == ACTION_CARRY:
        udp_carry(core, key, ip, u, verdict)
    elif verdict.action == ACTION_LOCAL:
        upcall_push(core, UPCALL_FRAME, frame, length)
    else:
        count(core, C_UDP_REFUSED)
        if verdict.action == ACTION_REFUSE:
            icmp_error(core, &ip.dst, ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE, 0, ip.header, ip.header_len + 8)
        elif verdict.action == ACTION_UNREACHABLE:
            no_route(core, ip)


cdef int icmp_counter(uint8_t kind) noexcept nogil:
    """Which counter a message of this type has (RFC 792)."""
    if kind == ICMP_ECHO_REQUEST:
        return C_ICMP_RX_ECHO
    if kind == ICMP_ECHO_REPLY:
        return C_ICMP_RX_ECHO_REPLY
    if kind == ICMP_UNREACHABLE:
        return C_ICMP_RX_UNREACHABLE
    if kind == ICMP_SOURCE_QUENCH:
        return C_ICMP_RX_SOURCE_QUENCH
    if kind == ICMP_REDIRECT:
        return C_ICMP_RX_REDIRECT
    if ICMP_TIME_EXCEEDED <= kind <= ICMP_INFORMATION_REPLY:
        return C_ICMP_RX_TIME_EXCEEDED + kind - ICMP_TIME_EXCEEDED
    return C_ICMP_RX_OTHER


cdef int igmp_counter(const Cursor* message) noexcept nogil:
    """Which counter a message has; multicast is not routed, so nothing else becomes of it."""
    if message.left < IGMP_HEADER_LEN:
        return C_IGMP_MALFORMED
    if csum_fold(csum_add(0, message.pos, message.left)):
        return C_IGMP_BAD_CHECKSUM
    if message.pos[0] == IGMP_MEMBERSHIP_QUERY:
        return C_IGMP_RX_QUERY
    if message.pos[0] == IGMP_V1_REPORT:
        return C_IGMP_RX_V1_REPORT
    if message.pos[0] == IGMP_V2_REPORT:
        return C_IGMP_RX_V2_REPORT
    if message.pos[0] == IGMP_V3_REPORT:
        return C_IGMP_RX_V3_REPORT
    if message.pos[0] == IGMP_LEAVE_GROUP:
        return C_IGMP_RX_LEAVE
    return C_IGMP_RX_OTHER


cdef void icmp_message(Core* core, const Ipv4View* ip, const uint8_t* frame, size_t length) noexcept nogil:
    if ip.payload.left < ICMP_HEADER_LEN:
        count(core, C_ICMP_RX_OTHER)
        return
    count(core, icmp_counter(ip.payload.pos[0]))
    if ip.payload.pos[0] != ICMP_ECHO_REQUEST or is_group(core, &ip.dst):
        return
    upcall_push(core, UPCALL_FRAME if addr_eq(&ip.dst, &core.gateway_ip) else UPCALL_ECHO, frame, length)
