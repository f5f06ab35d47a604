# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Frames of the guest to other VMs of its network.

While a batch from the link is handled, frames for peers are only noted; when it is done they leave in one datagram for
each peer, as they lie in memory, each behind its length (four bytes, big-endian: QEMU's framing, so that on such a link
a whole run of frames is one piece on both sides). What a peer does not take now waits for it (`switch.backlog`), within
bounds; what is more is lost, as at a switch whose port is full. What is for others never waits for it.

Broadcast and multicast are limited to a rate, so that one VM cannot keep all the others busy.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset
from posix.uio cimport iovec

from worker.core cimport (
    LINK_STREAM, MAX_NOTES, SWITCH_BATCH, SWITCH_OFFLOADED, SWITCH_PREFIX_LEN, Note, NoteChain, Peer, count, count_by,
)
from worker.counters cimport (
    C_ETHERNET_MALFORMED, C_SWITCH_SPOOFED_IP, C_SWITCH_SPOOFED_MAC, C_SWITCH_SPOOFED_ROUTER, C_SWITCH_STORM_DROPPED,
    C_SWITCH_TX_BYTES, C_SWITCH_TX_DROPPED, C_SWITCH_TX_FRAMES, C_SWITCH_UNCONFIRMED, C_SWITCH_UNKNOWN_MAC,
    C_SYSCALLS_SWITCH_SEND,
)
from worker.hostio cimport MSG_DONTWAIT, MSG_NOSIGNAL, msghdr, sendmsg
from worker.link.vnet cimport VNET_GSO_NONE, VNET_HEADER_LEN, VNET_NEEDS_CSUM
from worker.lists cimport Node, list_add, list_pop
from worker.switch.backlog cimport backlog_hold
from worker.switch.lane cimport lane_send
from worker.switch.peers cimport longest_frame, peer_with
from worker.switch.port_security cimport (
    SPEECH_FINE, SPEECH_FORGED_IP, SPEECH_FORGED_MAC, SPEECH_FORGED_ROUTER, SPEECH_LOCAL, speech_of,
)
from worker.upcall_queue cimport UPCALL_GUEST, upcall_push
from worker.wire._cursor cimport load_u16, store_u32
from worker.wire.addr cimport Addr, addr_from_v4
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4

cdef enum:
    STORM_COST = 1000  # us of credit for a frame to all: 1,000 a second
    STORM_CREDIT = 500000  # us; what may come at once: 500
    QUESTION_INTERVAL = 200000  # us
    ARP_SENDER_IP = ETHERNET_HEADER_LEN + 14
    IPV4_SOURCE = ETHERNET_HEADER_LEN + 12

cdef const uint8_t* LINK_LOCAL_GROUP = b"\x01\x80\xc2\x00\x00"


cdef void ask_who(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    """The guest calls itself what the supervisor has not granted. It may; if it does not, this is how it knows."""
    cdef uint8_t who[22]
    cdef const uint8_t* ip = NULL
    cdef Addr claimed
    if core.now < core.switch.next_question:
        return
    core.switch.next_question = core.now + QUESTION_INTERVAL
    if load_u16(frame + 12) == ETHERTYPE_ARP and length >= ARP_SENDER_IP + 4:
        ip = frame + ARP_SENDER_IP
    elif load_u16(frame + 12) == ETHERTYPE_IPV4 and length >= IPV4_SOURCE + 4:
        ip = frame + IPV4_SOURCE
    memset(who, 0, sizeof(who))
    memcpy(who, frame + 6, 6)
    if ip != NULL and (ip[0] or ip[1] or ip[2] or ip[3]):
        claimed = addr_from_v4(ip)
        memcpy(who + 6, &claimed, 16)
    upcall_push(core, UPCALL_GUEST, who, sizeof(who))


cdef inline bint is_to_be_cut(const Core* core, const uint8_t* frame) noexcept nogil:
    """Whether the guest's frame holds several TCP segments: its virtio_net_hdr says so."""
    cdef const uint8_t* header = frame - VNET_HEADER_LEN
    return core.offloads and header[1] != VNET_GSO_NONE


cdef inline bint is_offloaded(const Core* core, const uint8_t* frame) noexcept nogil:
    """Whether something is left to do about the guest's frame."""
    cdef const uint8_t* header = frame - VNET_HEADER_LEN
    return core.offloads and (header[0] & VNET_NEEDS_CSUM or header[1] != VNET_GSO_NONE)


cdef bint may_leave(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    cdef int speech
    if length > longest_frame(core, is_to_be_cut(core, frame)):
        count(core, C_ETHERNET_MALFORMED)
        return False
    speech = speech_of(core, &core.switch.guest, frame, length)
    if speech == SPEECH_FINE or speech == SPEECH_LOCAL:
        return speech == SPEECH_FINE
    if speech == SPEECH_FORGED_ROUTER:
        count(core, C_SWITCH_SPOOFED_ROUTER)
        return False
    if speech == SPEECH_FORGED_MAC:
        count(core, C_SWITCH_SPOOFED_MAC)
    else:
        count(core, C_SWITCH_SPOOFED_IP if speech == SPEECH_FORGED_IP else C_SWITCH_UNCONFIRMED)
    ask_who(core, frame, length)
    return False


cdef int add_pieces(iovec* pieces, int n, NoteChain* chain, uint32_t* frames, size_t* size) noexcept nogil:
    """Add the pieces of a chain behind `n` others; how many there are then."""
    cdef Note* note = chain.first
    while note != NULL:
        if not note.has_prefixes:
            pieces[n].iov_base = note.prefix
            pieces[n].iov_len = SWITCH_PREFIX_LEN
            n += 1
        pieces[n].iov_base = <void*>note.data
        pieces[n].iov_len = note.length
        n += 1
        frames[0] += note.frames
        size[0] += note.length - (note.frames * SWITCH_PREFIX_LEN if note.has_prefixes else 0)
        note = note.next
    return n


cdef bint send_now(Core* core, Peer* peer, iovec* pieces, int n) noexcept nogil:
    """One datagram of pieces to a peer behind whom none waits; False: it has to wait, or is lost."""
    cdef msghdr message
    memset(&message, 0, sizeof(message))
    message.msg_iov = pieces
    message.msg_iovlen = n
    count(core, C_SYSCALLS_SWITCH_SEND)
    return sendmsg(peer.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0


cdef bint reach(Core* core, Peer* peer, iovec* pieces, int n) noexcept nogil:
    """Let a datagram of pieces go to a peer, now or when there is room; False: it is lost."""
    if peer.fd < 0:
        return False
    if peer.backlog.first == NULL:
        if lane_send(core, peer, pieces, n) or send_now(core, peer, pieces, n):
            return True
        if errno != EAGAIN:
            return False
    return backlog_hold(core, peer, pieces, n)


cdef void send_notes(Core* core, Peer* peer) noexcept nogil:
    """Send a peer what is for it and what is for all, in one datagram."""
    cdef iovec pieces[MAX_NOTES * 2]
    cdef uint32_t frames = 0
    cdef size_t size = 0
    cdef int n = add_pieces(pieces, 0, &core.switch.flood, &frames, &size)
    n = add_pieces(pieces, n, &peer.notes, &frames, &size)
    peer.notes.first = NULL
    peer.notes.last = NULL
    if reach(core, peer, pieces, n):
        count_by(core, C_SWITCH_TX_FRAMES, frames)
        count_by(core, C_SWITCH_TX_BYTES, size)
    else:
        count_by(core, C_SWITCH_TX_DROPPED, frames)


cdef void switch_batch_done(Core* core) noexcept nogil:
    """The memory of the frames noted so far will be used again: send them."""
    cdef Node* node
    cdef Peer* peer
    if core.switch.note_count == 0:
        return
    if core.switch.flood.first != NULL:
        node = core.switch.peers.next
        while node != &core.switch.peers:
            list_add(&core.switch.pending, &(<Peer*>node.owner).pending)
            node = node.next
    peer = <Peer*>list_pop(&core.switch.pending)
    while peer != NULL:
        send_notes(core, peer)
        peer = <Peer*>list_pop(&core.switch.pending)
    core.switch.flood.first = NULL
    core.switch.flood.last = NULL
    core.switch.note_count = 0
    core.switch.noted = 0


cdef Note* new_note(Core* core, NoteChain* chain) noexcept nogil:
    cdef Note* note = &core.switch.notes[core.switch.note_count]
    core.switch.note_count += 1
    memset(note, 0, sizeof(Note))
    if chain.last != NULL:
        chain.last.next = note
    else:
        chain.first = note
    chain.last = note
    return note


cdef void note_frame(Core* core, NoteChain* chain, const uint8_t* frame, size_t length) noexcept nogil:
    """Let a frame leave with its batch."""
    cdef bint has_prefix = core.link_kind == LINK_STREAM and core.prefix_len == SWITCH_PREFIX_LEN
    cdef const uint8_t* data = frame - SWITCH_PREFIX_LEN if has_prefix else frame
    cdef uint32_t flag = 0
    cdef Note* note
    if is_offloaded(core, frame):
        flag = SWITCH_OFFLOADED
        data -= VNET_HEADER_LEN
        length += VNET_HEADER_LEN
    if core.switch.note_count == MAX_NOTES or core.switch.noted + SWITCH_PREFIX_LEN + length > SWITCH_BATCH:
        switch_batch_done(core)
    note = chain.last
    if note == NULL or not has_prefix or note.data + note.length != data:
        note = new_note(core, chain)
        note.data = data
        note.has_prefixes = has_prefix
        if not has_prefix:
            store_u32(note.prefix, <uint32_t>length | flag)
    note.length += length + (SWITCH_PREFIX_LEN if has_prefix else 0)
    note.frames += 1
    core.switch.noted += SWITCH_PREFIX_LEN + length


cdef bint is_storm(Core* core) noexcept nogil:
    """Whether a frame to all is one too many (counted)."""
    core.switch.storm_credit = min(core.switch.storm_credit + core.now - core.switch.storm_at, <int64_t>STORM_CREDIT)
    core.switch.storm_at = core.now
    if core.switch.storm_credit < STORM_COST:
        count(core, C_SWITCH_STORM_DROPPED)
        return True
    core.switch.storm_credit -= STORM_COST
    return False


cdef void switch_flood(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    """A frame to everybody, or to a group. What 802.1Q keeps on one link (table 8-1: STP, pause) stays."""
    if memcmp(frame, LINK_LOCAL_GROUP, 5) == 0 and frame[5] < 16:
        return
    if core.switch.peer_count and may_leave(core, frame, length) and not is_storm(core):
        note_frame(core, &core.switch.flood, frame, length)


cdef void switch_unicast(Core* core, const uint8_t* frame, size_t length) noexcept nogil:
    """A frame to one MAC, which is not the gateway's. One that no VM has goes nowhere, or where a VM may have more than
    the supervisor knows of, to everybody."""
    cdef Peer* peer = peer_with(core, frame)
    if peer == NULL and not core.switch.port_security:
        switch_flood(core, frame, length)
    elif peer == NULL:
        count(core, C_SWITCH_UNKNOWN_MAC)
    elif may_leave(core, frame, length):
        note_frame(core, &peer.notes, frame, length)
        list_add(&core.switch.pending, &peer.pending)
