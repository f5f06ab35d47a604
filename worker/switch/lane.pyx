# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Memory shared with a peer, for what is long: packets of many segments between tap devices.

A socket copies every byte twice and finds memory for it in between. So a long batch lies in a ring that both workers
have mapped, and the datagram in the socket only says where: what comes first, what waits, and who is woken is the
socket's business as ever. The sender makes the ring when it first has something long, one for each direction, and hands
it over by the same socket. A batch that has no room in it goes through the socket.

::

    page 0   how far the receiver is done, as a position
    page 1.. the batches, each in one piece: after the last that fits the next lies at the beginning

Positions count bytes for ever and wrap at 2**32, the first time after half a ring: what cannot wrap would be seen at
once, and not after 4 GB. A reference is three 32-bit numbers, big-endian: offset and size of
the batch, and the position behind it.

The sender's worker may be broken, and change what was looked at: of a frame that stays in the ring the first LANE_HEAD
bytes are copied before anybody looks, and leave from the copy. Everything else is copied whole. A broken receiver's
position can spoil nothing but what it is sent.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport close as close_fd

from worker.core cimport (
    SWITCH_BATCH, SWITCH_IN_LANE, SWITCH_OFFLOADED, SWITCH_PREFIX_LEN, LaneIn, count,
)
from worker.counters cimport C_SYSCALLS_SWITCH_SEND
from worker.hostio cimport MSG_DONTWAIT, MSG_NOSIGNAL, send
from worker.lists cimport list_add, list_empty, list_pop, list_remove, node_init
from worker.switch.shared_memory cimport (
    memory_map, memory_map_theirs, memory_new, memory_unmap, send_descriptor,
)
from worker.wire._cursor cimport load_u32, store_u32

cdef enum:
    PAGE = 4096
    RING = 1048576
    LANE_SIZE = PAGE + RING
    WORTHWHILE = 16384  # bytes of a batch; less is quicker by the socket
    MAX_LANES = 16  # that one worker makes
    START = -524288


cdef extern from *:
    """
    #define moorage_load_position(p) __atomic_load_n((const unsigned int *)(p), __ATOMIC_ACQUIRE)
    #define moorage_store_position(p, v) __atomic_store_n((unsigned int *)(p), (v), __ATOMIC_RELEASE)
    """
    uint32_t moorage_load_position(const uint8_t* p) nogil
    void moorage_store_position(uint8_t* p, uint32_t value) nogil


cdef bint lane_offer(Peer* peer, int fd, uint8_t* memory) noexcept nogil:
    """Hand new memory over as a ring. No room in the socket says nothing of the next time."""
    moorage_store_position(memory, START)
    if send_descriptor(peer.fd, fd) < 0:
        peer.lane_out.refused = errno != EAGAIN
        return False
    peer.lane_out.memory = memory
    peer.lane_out.head = START
    peer.lane_out.origin = START
    return True


cdef bint lane_open(Core* core, Peer* peer) noexcept nogil:
    """Make the ring and hand it over, once; False: there is none."""
    cdef int fd
    cdef uint8_t* memory
    if peer.lane_out.memory != NULL:
        return True
    if peer.lane_out.refused or core.switch.lanes == MAX_LANES:
        return False
    fd = memory_new(LANE_SIZE)
    memory = memory_map(fd, LANE_SIZE) if fd >= 0 else NULL
    if memory == NULL:
        peer.lane_out.refused = True
    else:
        count(core, C_SYSCALLS_SWITCH_SEND)
        if lane_offer(peer, fd, memory):
            core.switch.lanes += 1
        else:
            memory_unmap(memory, LANE_SIZE)
    if fd >= 0:
        close_fd(fd)
    return peer.lane_out.memory != NULL


cdef uint8_t* place_for(Peer* peer, uint32_t size) noexcept nogil:
    """Where a batch of that size has room, in one piece, and the head is set to; NULL: nowhere now."""
    cdef uint32_t tail = moorage_load_position(peer.lane_out.memory)
    cdef uint32_t head = peer.lane_out.head
    cdef uint32_t origin = head if head == tail else peer.lane_out.origin  # all of it is free: where caches are warm
    if head - origin + size > RING:
        origin += RING
        head = origin
    if head + size - tail > RING:
        return NULL
    peer.lane_out.head = head
    peer.lane_out.origin = origin
    return peer.lane_out.memory + PAGE + (head - origin)


cdef bint lane_send(Core* core, Peer* peer, const iovec* pieces, int n) noexcept nogil:
    """Let a datagram of pieces go through the ring; False: it is not for it, or neither ring nor socket has room."""
    cdef uint8_t reference[LANE_REFERENCE_LEN]
    cdef size_t size = 0
    cdef uint8_t* place
    cdef int i
    if not core.offloads:
        return False
    for i in range(n):
        size += pieces[i].iov_len
    if size < WORTHWHILE or size > SWITCH_BATCH or not lane_open(core, peer):
        return False
    place = place_for(peer, <uint32_t>size)
    if place == NULL:
        return False
    store_u32(reference, <uint32_t>(place - peer.lane_out.memory - PAGE))
    store_u32(reference + 4, <uint32_t>size)
    store_u32(reference + 8, peer.lane_out.head + <uint32_t>size)
    for i in range(n):
        memcpy(place, pieces[i].iov_base, pieces[i].iov_len)
        place += pieces[i].iov_len
    count(core, C_SYSCALLS_SWITCH_SEND)
    if send(peer.fd, reference, LANE_REFERENCE_LEN, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
        return False
    peer.lane_out.head += <uint32_t>size
    return True


cdef void unmap_in(LaneIn* lane) noexcept nogil:
    list_remove(&lane.releasing)
    memory_unmap(lane.memory, LANE_SIZE)
    free(lane)


cdef void close_in(Core* core, Peer* peer) noexcept nogil:
    """No more comes by the ring; what is on its way to the link lies in it still."""
    if peer.lane_in != NULL:
        peer.lane_in.closed = True
        list_add(&core.switch.releasing, &peer.lane_in.releasing)
        peer.lane_in = NULL


cdef bint lane_accept(Core* core, Peer* peer, int fd) noexcept nogil:
    """A peer hands its ring over, in place of the one before; False: it is none. The descriptor is closed."""
    cdef uint8_t* memory = memory_map_theirs(fd, LANE_SIZE)
    cdef LaneIn* lane = NULL
    close_fd(fd)
    if memory != NULL:
        lane = <LaneIn*>calloc(1, sizeof(LaneIn))
    if lane == NULL:
        if memory != NULL:
            memory_unmap(memory, LANE_SIZE)
        return False
    close_in(core, peer)
    lane.memory = memory
    node_init(&lane.releasing, lane)
    peer.lane_in = lane
    return True


cdef ssize_t take_frame(Core* core, const uint8_t* data, size_t left, uint8_t* place, size_t* length) noexcept nogil:
    """Copy a frame of a batch, or its head; how long that is, and the frame in the ring. -1: it is none."""
    cdef uint64_t rest
    cdef uint32_t prefix
    memcpy(place, data, SWITCH_PREFIX_LEN)
    prefix = load_u32(place)  # of the copy: it may change where it comes from
    length[0] = SWITCH_PREFIX_LEN + (prefix & ~<uint32_t>SWITCH_OFFLOADED)
    if length[0] > left:
        return -1
    if (
        not core.offloads or core.captures != NULL or not prefix & SWITCH_OFFLOADED
        or length[0] <= SWITCH_PREFIX_LEN + LANE_ENTRY_LEN
    ):
        memcpy(place + SWITCH_PREFIX_LEN, data + SWITCH_PREFIX_LEN, length[0] - SWITCH_PREFIX_LEN)
        return length[0]
    store_u32(place, prefix | SWITCH_IN_LANE)
    place += SWITCH_PREFIX_LEN
    memcpy(place, data + SWITCH_PREFIX_LEN, LANE_HEAD)
    rest = <uint64_t>(data + SWITCH_PREFIX_LEN + LANE_HEAD)
    memcpy(place + LANE_HEAD, &rest, sizeof(rest))
    return SWITCH_PREFIX_LEN + LANE_ENTRY_LEN


cdef ssize_t lane_fetch(Core* core, Peer* peer, uint8_t* place) noexcept nogil:
    """In place of a reference put what it refers to; its length there, which is no more than that of the batch. A long
    frame for a device with offloads is an entry: its head, and where the rest lies. -1: it refers to nothing."""
    cdef uint32_t offset = load_u32(place)
    cdef size_t left = load_u32(place + 4)
    cdef uint32_t position = load_u32(place + 8)
    cdef const uint8_t* data
    cdef uint8_t* start = place
    cdef size_t length
    cdef ssize_t copied
    if peer.lane_in == NULL or left > SWITCH_BATCH or offset > RING or left > RING - offset:
        return -1
    peer.lane_in.done = position
    list_add(&core.switch.releasing, &peer.lane_in.releasing)
    data = peer.lane_in.memory + PAGE + offset
    while left:
        copied = take_frame(core, data, left, place, &length) if left > SWITCH_PREFIX_LEN else -1
        if copied < 0:
            return -1
        place += copied
        data += length
        left -= length
    return place - start


cdef const uint8_t* lane_rest(const uint8_t* entry) noexcept nogil:
    """Where the rest of an entry's frame lies."""
    cdef uint64_t rest
    memcpy(&rest, entry + LANE_HEAD, sizeof(rest))
    return <const uint8_t*>rest


cdef void lanes_release(Core* core) noexcept nogil:
    """The link has taken all that was fetched: tell the senders."""
    cdef LaneIn* lane
    while not list_empty(&core.switch.releasing):
        lane = <LaneIn*>list_pop(&core.switch.releasing)
        if lane.closed:
            unmap_in(lane)
        else:
            moorage_store_position(lane.memory, lane.done)


cdef void lanes_close(Core* core, Peer* peer) noexcept nogil:
    """The socket to a peer is given up, and with it both rings."""
    close_in(core, peer)
    if peer.lane_out.memory != NULL:
        memory_unmap(peer.lane_out.memory, LANE_SIZE)
        peer.lane_out.memory = NULL
        core.switch.lanes -= 1
    peer.lane_out.refused = False
