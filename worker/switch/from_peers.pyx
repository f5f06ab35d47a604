# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Frames of other VMs of the network to the guest.

A datagram of a peer is read whole, every frame in it is looked at, and then it goes to the link from where it lies: the
inbox is used again when the link has taken everything. While the link is full no peer is read: what a slow guest does
not take waits in the sockets and at the senders, and is lost there once it is too much.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t

from worker.core cimport INBOX_SIZE, SWITCH_BATCH, SWITCH_IN_LANE, SWITCH_OFFLOADED, SWITCH_PREFIX_LEN, count, count_by
from worker.counters cimport (
    C_SWITCH_RX_BYTES, C_SWITCH_RX_FRAMES, C_SWITCH_RX_REFUSED, C_SYSCALLS_SWITCH_RECV,
)
from worker.link.vnet cimport VNET_GSO_NONE, VNET_GSO_TCPV4, VNET_HEADER_LEN
from worker.lists cimport list_add, list_empty, list_pop
from worker.readiness cimport READY_IN, READY_OUT, ready_rearm
from worker.switch.backlog cimport backlog_send
from worker.switch.deliver cimport deliver
from worker.switch.lane cimport (
    LANE_ENTRY_LEN, LANE_HEAD, LANE_REFERENCE_LEN, lane_accept, lane_fetch, lanes_release,
)
from worker.switch.peers cimport longest_frame, peer_learn
from worker.switch.port_security cimport SPEECH_FINE, speech_of
from worker.switch.shared_memory cimport receive_with_descriptor
from worker.wire._cursor cimport load_u32
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN

cdef enum:
    DATAGRAMS_PER_TURN = 16


cdef void switch_event(Core* core, Peer* peer, uint32_t what) noexcept nogil:
    """Something has come from a peer, or its socket has room again."""
    if peer.dead:
        return
    if what & READY_OUT:
        backlog_send(core, peer)
    if what & ~READY_OUT:
        list_add(&core.switch.readable, &peer.readable)


cdef bint switch_waits(const Core* core) noexcept nogil:
    """Something of a peer's waits, and the link is not full."""
    return core.switch.inbox_at != core.switch.inbox_end or not list_empty(&core.switch.readable)


cdef int frames_of(
    Core* core, Peer* peer, const uint8_t* data, size_t size, bint fetched, size_t* bytes
) noexcept nogil:
    """How many frames there are in a batch, and bytes in them; -1: it is not what a worker of ours sends, or a VM may
    say.

    `fetched`: by us, from a lane; only then may there be entries.
    """
    cdef size_t length
    cdef size_t here
    cdef bint is_entry
    cdef bint to_be_cut
    cdef int frames = 0
    core.switch.inbox_offloaded = False
    bytes[0] = 0
    while size:
        if size < SWITCH_PREFIX_LEN + ETHERNET_HEADER_LEN:
            return -1
        length = load_u32(data)
        data += SWITCH_PREFIX_LEN
        size -= SWITCH_PREFIX_LEN
        is_entry = fetched and length & SWITCH_IN_LANE
        if is_entry:
            length ^= SWITCH_IN_LANE
        to_be_cut = False
        here = LANE_HEAD if is_entry else length & ~<size_t>SWITCH_OFFLOADED
        bytes[0] += length & ~<size_t>SWITCH_OFFLOADED
        if length & SWITCH_OFFLOADED:
            length ^= SWITCH_OFFLOADED
            if here < VNET_HEADER_LEN or here > size:
                return -1
            to_be_cut = data[1] != VNET_GSO_NONE
            if to_be_cut and data[1] != VNET_GSO_TCPV4:
                return -1  # no guest's worker lets it out (link.tap)
            core.switch.inbox_offloaded = True
            data += VNET_HEADER_LEN
            size -= VNET_HEADER_LEN
            length -= VNET_HEADER_LEN
            here -= VNET_HEADER_LEN
        if here < ETHERNET_HEADER_LEN or length > longest_frame(core, to_be_cut) or here > size:
            return -1
        if data[6] & 1 or speech_of(core, &peer.identity, data, here) != SPEECH_FINE:
            return -1
        if not core.switch.port_security:
            peer_learn(core, peer, data + 6)
        if is_entry:
            here += LANE_ENTRY_LEN - LANE_HEAD
        data += here
        size -= here
        frames += 1
    return frames


cdef ssize_t read_datagram(Core* core, Peer* peer, uint8_t* place, bint* fetched) noexcept nogil:
    """Read a peer once; the length of the batch, now in the inbox, and whether it came by the lane. 0: there is none,
    -1: what came is wrong."""
    cdef int fd
    cdef ssize_t n = receive_with_descriptor(peer.fd, place, SWITCH_BATCH, &fd)
    fetched[0] = False
    count(core, C_SYSCALLS_SWITCH_RECV)
    if n < 0:
        if errno == EINTR:
            list_add(&core.switch.readable, &peer.readable)
        elif errno == EAGAIN:
            ready_rearm(&core.ready, peer.fd, READY_IN)
        return 0
    list_add(&core.switch.readable, &peer.readable)
    if fd >= 0:
        return 0 if lane_accept(core, peer, fd) else -1
    if n == LANE_REFERENCE_LEN:
        fetched[0] = True
        return lane_fetch(core, peer, place)
    return n if n <= SWITCH_BATCH else -1


cdef void take_datagram(Core* core, Peer* peer) noexcept nogil:
    """Read a peer once, into the inbox's free end; what is wrong is counted and forgotten."""
    cdef uint8_t* place = core.switch.inbox + core.switch.inbox_end
    cdef bint fetched
    cdef ssize_t n = read_datagram(core, peer, place, &fetched)
    cdef size_t bytes
    cdef int frames = frames_of(core, peer, place, n, fetched, &bytes) if n >= 0 else -1
    if frames < 0:
        count(core, C_SWITCH_RX_REFUSED)
        return
    core.switch.inbox_end += n
    core.switch.inbox_frames = frames
    count_by(core, C_SWITCH_RX_FRAMES, frames)
    count_by(core, C_SWITCH_RX_BYTES, bytes)


cdef inline bint pass_on(Core* core) noexcept nogil:
    """Give the link what is in the inbox; False: it has no room for all of it."""
    core.switch.inbox_at += deliver(
        core, core.switch.inbox + core.switch.inbox_at, core.switch.inbox_end - core.switch.inbox_at
    )
    return core.switch.inbox_at == core.switch.inbox_end


cdef void switch_sent(Core* core) noexcept nogil:
    """Where the link has taken all there was, its memory may be used again."""
    if core.out.count == 0 and core.switch.inbox_at == core.switch.inbox_end:
        core.switch.inbox_at = 0
        core.switch.inbox_end = 0
        lanes_release(core)


cdef void switch_receive(Core* core) noexcept nogil:
    """Read peers in turn, as long as the guest's link has room."""
    cdef Peer* peer
    cdef int _
    if core.out.blocked or core.link_closed or not switch_waits(core):
        return
    switch_sent(core)
    for _ in range(DATAGRAMS_PER_TURN):
        if not pass_on(core) or core.switch.inbox_end > INBOX_SIZE - SWITCH_BATCH:
            return
        peer = <Peer*>list_pop(&core.switch.readable)
        if peer == NULL:
            return
        take_datagram(core, peer)
    pass_on(core)
