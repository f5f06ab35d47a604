# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""TCP segments as frames on the link (RFC 9293 section 3.1, RFC 894): headers and options into a slot of the batch,
payload where it lies in the flow's ring. A link with offloads is left the checksum, and the cutting of what is longer
than one segment."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec

from worker.capture cimport capture_last_of_batch
from worker.core cimport count
from worker.counters cimport C_TCP_FAST_RETRANSMITS, C_TCP_RETRANSMITS, C_TCP_TX_SEGMENTS
from worker.link.output cimport out_commit, out_finish_frame, out_push, out_reserve, out_slot
from worker.link.vnet cimport VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_HEADER_LEN, put_vnet_offload
from worker.ring cimport ring_slices
from worker.tcp.options cimport put_options
from worker.tcp.tcb cimport CA_RECOVERY, Tcb
from worker.wire.checksum cimport csum_add, csum_fold, csum_partial16, csum_shift
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, put_ethernet
from worker.wire.ipv4 cimport IPPROTO_TCP_, IPV4_DF, IPV4_HEADER_LEN, pseudo_sum, put_ipv4
from worker.wire.tcp cimport TCP_HEADER_LEN, put_tcp

cdef enum:
    HEADERS_LEN = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN
    CHECKSUM_AT = 16  # in the TCP header


cdef void emit_segment(Core* core, TcpFlow* flow, const OutSegment* segment) noexcept nogil:
    """Add a segment to the batch, which must not be full."""
    cdef const Tcb* t = &flow.tcb
    cdef uint8_t* frame = out_slot(core)
    cdef uint8_t* header = frame + HEADERS_LEN
    cdef size_t header_len = TCP_HEADER_LEN + put_options(
        t, segment, core.mtu - IPV4_HEADER_LEN - TCP_HEADER_LEN, core.now, header + TCP_HEADER_LEN
    )
    cdef iovec pieces[2]
    cdef int parts = 0
    cdef uint64_t checksum
    if segment.length:
        parts = ring_slices(&t.snd, segment.offset, segment.length, pieces)
    put_ethernet(frame, core.guest_mac, core.gateway_mac, ETHERTYPE_IPV4)
    put_ipv4(
        frame + ETHERNET_HEADER_LEN, &flow.head.key.peer, &flow.head.key.guest, IPPROTO_TCP_,
        header_len + segment.length, 0, IPV4_DF,
    )
    put_tcp(
        header, flow.head.key.peer_port, flow.head.key.guest_port, segment.seq, segment.ack, header_len, segment.flags,
        segment.window,
    )
    checksum = pseudo_sum(
        &flow.head.key.peer, &flow.head.key.guest, IPPROTO_TCP_, header_len + segment.length
    )
    if core.offloads:
        put_vnet_offload(
            frame - VNET_HEADER_LEN, VNET_GSO_TCPV4 if segment.length > t.mss else VNET_GSO_NONE,
            <uint16_t>(HEADERS_LEN + header_len), t.mss if segment.length > t.mss else 0, HEADERS_LEN, CHECKSUM_AT,
        )
        put_checksum(header, csum_partial16(checksum))
    else:
        put_checksum(header, csum_fold(add_pieces(csum_add(checksum, header, header_len), pieces, parts)))
    out_finish_frame(core, frame, HEADERS_LEN + header_len, segment.length)
    if parts:
        out_push(core, <const uint8_t*>pieces[0].iov_base, pieces[0].iov_len)
    if parts == 2:
        out_push(core, <const uint8_t*>pieces[1].iov_base, pieces[1].iov_len)
    if core.captures != NULL:
        capture_last_of_batch(core)
    count(core, C_TCP_TX_SEGMENTS)
    if segment.retransmission:
        count(core, C_TCP_RETRANSMITS)
        if t.ca_state == CA_RECOVERY:
            count(core, C_TCP_FAST_RETRANSMITS)


cdef inline uint64_t add_pieces(uint64_t checksum, const iovec* pieces, int parts) noexcept nogil:
    if parts:
        checksum = csum_add(checksum, pieces[0].iov_base, pieces[0].iov_len)
    if parts == 2:
        if pieces[0].iov_len & 1:
            checksum += csum_shift(csum_add(0, pieces[1].iov_base, pieces[1].iov_len))
        else:
            checksum = csum_add(checksum, pieces[1].iov_base, pieces[1].iov_len)
    return checksum


cdef inline void put_checksum(uint8_t* header, uint16_t field) noexcept nogil:
    memcpy(header + CHECKSUM_AT, &field, 2)


cdef void emit_reset(Core* core, const FlowKey* key, uint32_t seq, uint32_t ack, unsigned int flags) noexcept nogil:
    """Queue a RST, which belongs to no flow any more."""
    cdef size_t total = HEADERS_LEN + TCP_HEADER_LEN
    cdef uint8_t* p = out_reserve(core, total)
    cdef uint8_t* header
    if p == NULL:
        return
    header = p + HEADERS_LEN
    put_ethernet(p, core.guest_mac, core.gateway_mac, ETHERTYPE_IPV4)
    put_ipv4(p + ETHERNET_HEADER_LEN, &key.peer, &key.guest, IPPROTO_TCP_, TCP_HEADER_LEN, 0, IPV4_DF)
    put_tcp(header, key.peer_port, key.guest_port, seq, ack, TCP_HEADER_LEN, flags, 0)
    put_checksum(
        header,
        csum_fold(csum_add(pseudo_sum(&key.peer, &key.guest, IPPROTO_TCP_, TCP_HEADER_LEN), header, TCP_HEADER_LEN)),
    )
    out_commit(core, total)
    count(core, C_TCP_TX_SEGMENTS)
