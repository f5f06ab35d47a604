# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A datagram of a peer onto the guest's link, from where it lies.

A link of QEMU's framing takes it as it is. On another each frame is a piece, behind what the link wants before it. What
a tap device with offloads left undone (a checksum, the cutting of many TCP segments) is left undone for another such
device too, and is done here for every other link.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from worker.capture cimport TO_GUEST, capture_frame, capture_last_of_batch
from worker.core cimport LINK_STREAM, OUT_SLOTS, SWITCH_IN_LANE, SWITCH_OFFLOADED, SWITCH_PREFIX_LEN, count, count_by
from worker.counters cimport C_LINK_TX_BYTES, C_LINK_TX_DROPPED, C_LINK_TX_FRAMES
from worker.link.output cimport out_add, out_batch_full, out_finish_frame, out_push, out_slot, put_prefix
from worker.link.vnet cimport VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_HEADER_LEN, VNET_NEEDS_CSUM, put_vnet_plain
from worker.switch.lane cimport LANE_ENTRY_LEN, LANE_HEAD, lane_rest
from worker.wire._cursor cimport load_u16, load_u32, store_u16, store_u32
from worker.wire.checksum cimport csum_add, csum_fold
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN, ETHERTYPE_IPV4
from worker.wire.ipv4 cimport IPPROTO_TCP_, IPV4_HEADER_LEN
from worker.wire.tcp cimport TCP_FIN, TCP_HEADER_LEN, TCP_PSH

cdef enum:
    IP_LENGTH = ETHERNET_HEADER_LEN + 2
    IP_IDENT = ETHERNET_HEADER_LEN + 4
    IP_PROTOCOL = ETHERNET_HEADER_LEN + 9
    IP_CHECKSUM = ETHERNET_HEADER_LEN + 10
    IP_ADDRESSES = ETHERNET_HEADER_LEN + 12
    TCP_START = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN
    TCP_SEQ = TCP_START + 4
    TCP_OFFSET = TCP_START + 12
    TCP_FLAGS = TCP_START + 13
    TCP_CHECKSUM = TCP_START + 16
    TCP_CWR = 128  # RFC 3168 section 6.1.2


cdef inline uint16_t native_u16(const uint8_t* p) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, p, 2)
    return value


cdef void count_frame(Core* core, size_t length) noexcept nogil:
    count(core, C_LINK_TX_FRAMES)
    count_by(core, C_LINK_TX_BYTES, length)


cdef void add_frame(Core* core, uint8_t* frame, size_t length) noexcept nogil:
    """Put a frame into the batch, with what its link wants before it; on a stream that lies where its length lay."""
    cdef uint8_t* slot
    if core.link_kind == LINK_STREAM:
        put_prefix(core, frame - core.prefix_len, length)
        out_add(core, frame - core.prefix_len, core.prefix_len + length)
    elif core.offloads:
        slot = out_slot(core)
        put_vnet_plain(slot)
        out_add(core, slot, VNET_HEADER_LEN)
        out_push(core, frame, length)
    else:
        out_add(core, frame, length)
    capture_frame(core, TO_GUEST, frame, length)
    count_frame(core, length)


cdef bint fill_checksum(const uint8_t* header, uint8_t* frame, size_t length) noexcept nogil:
    """Do what VNET_NEEDS_CSUM asks; False: the fields make no sense."""
    cdef size_t start = native_u16(header + 6)
    cdef size_t field = start + native_u16(header + 8)
    cdef uint16_t checksum
    if start < ETHERNET_HEADER_LEN or field + 2 > length:
        return False
    checksum = csum_fold(csum_add(0, frame + start, length - start))
    if checksum == 0:
        checksum = 0xffff  # of UDP 0 means none (RFC 768); of others both are zero
    memcpy(frame + field, &checksum, 2)
    return True


cdef size_t headers_of(const uint8_t* header, const uint8_t* frame, size_t length) noexcept nogil:
    """How long the headers of a frame of several TCP segments are; 0: it is not one that can be cut."""
    cdef size_t headers
    if header[1] != VNET_GSO_TCPV4 or length < TCP_START + TCP_HEADER_LEN or native_u16(header + 4) == 0:
        return 0
    if load_u16(frame + 12) != ETHERTYPE_IPV4 or frame[ETHERNET_HEADER_LEN] != 0x45:
        return 0
    if frame[IP_PROTOCOL] != IPPROTO_TCP_ or load_u16(frame + IP_LENGTH) != length - ETHERNET_HEADER_LEN:
        return 0
    headers = TCP_START + (frame[TCP_OFFSET] >> 4) * 4
    return headers if TCP_START + TCP_HEADER_LEN <= headers < length else 0


cdef void add_segment(
    Core* core, const uint8_t* frame, size_t headers, size_t at, size_t length, uint16_t number, bint is_last
) noexcept nogil:
    """Put the segment whose payload begins at `at` of a frame's into the batch (RFC 9293 section 3.1)."""
    cdef uint8_t* slot = out_slot(core)
    cdef const uint8_t* payload = frame + headers + at
    cdef uint8_t pseudo_tail[4]
    cdef uint16_t checksum = 0
    cdef uint64_t total
    memcpy(slot, frame, headers)
    store_u16(slot + IP_LENGTH, <uint32_t>(headers - ETHERNET_HEADER_LEN + length))
    store_u16(slot + IP_IDENT, load_u16(frame + IP_IDENT) + number)
    memcpy(slot + IP_CHECKSUM, &checksum, 2)
    checksum = csum_fold(csum_add(0, slot + ETHERNET_HEADER_LEN, IPV4_HEADER_LEN))
    memcpy(slot + IP_CHECKSUM, &checksum, 2)
    store_u32(slot + TCP_SEQ, load_u32(frame + TCP_SEQ) + <uint32_t>at)
    if not is_last:
        slot[TCP_FLAGS] &= <uint8_t>~(TCP_FIN | TCP_PSH)
    if number:
        slot[TCP_FLAGS] &= <uint8_t>~TCP_CWR
    checksum = 0
    memcpy(slot + TCP_CHECKSUM, &checksum, 2)
    pseudo_tail[0] = 0
    pseudo_tail[1] = IPPROTO_TCP_
    store_u16(pseudo_tail + 2, <uint32_t>(headers - TCP_START + length))
    total = csum_add(csum_add(0, slot + IP_ADDRESSES, 8), pseudo_tail, 4)
    total = csum_add(csum_add(total, slot + TCP_START, headers - TCP_START), payload, length)
    checksum = csum_fold(total)
    memcpy(slot + TCP_CHECKSUM, &checksum, 2)
    out_finish_frame(core, slot, headers, length)
    out_push(core, payload, length)
    if core.captures != NULL:
        capture_last_of_batch(core)


cdef bint add_cut(Core* core, const uint8_t* header, const uint8_t* frame, size_t length) noexcept nogil:
    """Put a frame of several TCP segments into the batch, one by one; False: not all of them have room now. What cannot
    be cut to fit the link is dropped (and counted)."""
    cdef size_t headers = headers_of(header, frame, length)
    cdef size_t size = native_u16(header + 4)
    cdef size_t payload = length - headers
    cdef size_t segments = (payload + size - 1) // size if headers else 0
    cdef size_t i
    if headers == 0 or segments > OUT_SLOTS or headers + min(size, payload) > core.mtu + ETHERNET_HEADER_LEN:
        count(core, C_LINK_TX_DROPPED)
        return True
    if core.out.frame_count + segments > OUT_SLOTS:
        return False
    for i in range(segments):
        add_segment(
            core, frame, headers, i * size, min(size, payload - i * size), <uint16_t>i, i + 1 == segments
        )
    return True


cdef bint add_offloaded(Core* core, uint8_t* header, size_t size) noexcept nogil:
    """Put a frame behind a virtio_net_hdr into the batch; False: not all of it has room now."""
    cdef uint8_t* frame = header + VNET_HEADER_LEN
    cdef size_t length = size - VNET_HEADER_LEN
    if core.offloads:
        out_add(core, header, size)
        capture_frame(core, TO_GUEST, frame, length)
        count_frame(core, length)
    elif header[1] != VNET_GSO_NONE:
        return add_cut(core, header, frame, length)
    elif header[0] & VNET_NEEDS_CSUM and not fill_checksum(header, frame, length):
        count(core, C_LINK_TX_DROPPED)
    else:
        add_frame(core, frame, length)
    return True


cdef void add_entry(Core* core, uint8_t* entry, size_t size) noexcept nogil:
    """Put a frame into the batch of which only the head is here, behind its virtio_net_hdr."""
    out_add(core, entry, LANE_HEAD)
    out_push(core, lane_rest(entry), size - LANE_HEAD)
    count_frame(core, size - VNET_HEADER_LEN)


cdef void capture_frames(Core* core, const uint8_t* data, size_t size) noexcept nogil:
    """Each of several frames, behind its length."""
    cdef size_t at = 0
    while at < size:
        capture_frame(core, TO_GUEST, data + at + SWITCH_PREFIX_LEN, load_u32(data + at))
        at += SWITCH_PREFIX_LEN + load_u32(data + at)


cdef size_t deliver(Core* core, uint8_t* data, size_t size) noexcept nogil:
    """Add what is left of a datagram to the batch for the link; how many bytes of it had room. Its lengths are right.

    It stays where it is until the link has taken it.
    """
    cdef size_t at = 0
    cdef size_t length
    if core.link_kind == LINK_STREAM and core.prefix_len == SWITCH_PREFIX_LEN and not core.switch.inbox_offloaded:
        if size == 0 or out_batch_full(core):
            return 0
        out_add(core, data, size)
        if core.captures != NULL:
            capture_frames(core, data, size)
        count_by(core, C_LINK_TX_FRAMES, core.switch.inbox_frames)
        count_by(core, C_LINK_TX_BYTES, size - core.switch.inbox_frames * SWITCH_PREFIX_LEN)
        return size
    while at < size and not out_batch_full(core):
        length = load_u32(data + at)
        if length & SWITCH_IN_LANE:
            add_entry(core, data + at + SWITCH_PREFIX_LEN, length ^ (SWITCH_IN_LANE | SWITCH_OFFLOADED))
            at += SWITCH_PREFIX_LEN + LANE_ENTRY_LEN
            continue
        if not length & SWITCH_OFFLOADED:
            add_frame(core, data + at + SWITCH_PREFIX_LEN, length)
        else:
            length ^= SWITCH_OFFLOADED
            if not add_offloaded(core, data + at + SWITCH_PREFIX_LEN, length):
                break
        at += SWITCH_PREFIX_LEN + length
    return at
