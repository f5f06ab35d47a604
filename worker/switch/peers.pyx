# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""The other VMs of the network: who they are, and which of them a frame is for.

A worker has a datagram socket for each of them, connected with that VM's worker. What is in it came from there and from
nowhere else.
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy
from posix.unistd cimport close as close_fd

from worker.core cimport INBOX_SIZE, MAX_NOTES, TAG_PEER, Note, token_of
from worker.lists cimport Node, list_add, list_append, list_empty, list_init, list_pop, list_remove, node_init
from worker.readiness cimport READY_EDGE, READY_IN, ready_add, ready_remove
from worker.switch.backlog cimport backlog_forget
from worker.switch.lane cimport lanes_close, lanes_release
from worker.switch.mac_table cimport macs_close, macs_find, macs_forget, macs_init, macs_put

cdef enum:
    LEARN_AGAIN = 1000000  # us; after that a MAC that was seen before is noted anew


cdef void switch_init(Core* core) noexcept nogil:
    """Nobody is known yet."""
    list_init(&core.switch.peers)
    list_init(&core.switch.pending)
    list_init(&core.switch.readable)
    list_init(&core.switch.grave)
    list_init(&core.switch.releasing)


cdef int switch_join(Core* core, bint port_security, unsigned long long seed) noexcept nogil:
    """Be on a network with others; 0, or -1: no memory."""
    core.switch.notes = <Note*>malloc(MAX_NOTES * sizeof(Note))
    core.switch.inbox = <uint8_t*>malloc(INBOX_SIZE)
    if core.switch.notes == NULL or core.switch.inbox == NULL or macs_init(&core.switch.macs, seed):
        return -1
    core.switch.port_security = port_security
    core.switch.joined = True
    return 0


cdef void switch_close(Core* core) noexcept nogil:
    while not list_empty(&core.switch.peers):
        peer_remove(core, <Peer*>core.switch.peers.next.owner)
    peers_bury(core)
    lanes_release(core)
    macs_close(&core.switch.macs)
    free(core.switch.notes)
    free(core.switch.inbox)


cdef Peer* peer_find(Core* core, unsigned int number) noexcept nogil:
    """The peer of a number, or NULL. Not for every frame."""
    cdef Node* node = core.switch.peers.next
    while node != &core.switch.peers:
        if (<Peer*>node.owner).number == number:
            return <Peer*>node.owner
        node = node.next
    return NULL


cdef Peer* peer_add(Core* core, unsigned int number) noexcept nogil:
    """A new peer, not connected yet; NULL: no memory."""
    cdef Peer* peer = <Peer*>calloc(1, sizeof(Peer))
    if peer == NULL:
        return NULL
    peer.fd = -1
    peer.number = number
    node_init(&peer.node, peer)
    node_init(&peer.pending, peer)
    node_init(&peer.readable, peer)
    node_init(&peer.grave, peer)
    list_append(&core.switch.peers, &peer.node)
    core.switch.peer_count += 1
    return peer


cdef void disconnect(Core* core, Peer* peer) noexcept nogil:
    if peer.fd >= 0:
        backlog_forget(core, peer)
        lanes_close(core, peer)
        ready_remove(&core.ready, peer.fd)
        close_fd(peer.fd)
        peer.fd = -1


cdef int peer_connect(Core* core, Peer* peer, int fd) noexcept nogil:
    """Reach a peer by this socket from now on; 0, or an errno: it is not taken."""
    cdef int error = ready_add(&core.ready, fd, token_of(TAG_PEER, peer), READY_IN | READY_EDGE)
    if error == 0:
        disconnect(core, peer)
        peer.fd = fd
        list_add(&core.switch.readable, &peer.readable)  # something may have come before
    return error


cdef void peer_remove(Core* core, Peer* peer) noexcept nogil:
    """A VM is gone; its memory stays until the end of the turn, for events that still name it."""
    peer.dead = True
    disconnect(core, peer)
    list_remove(&peer.node)
    list_remove(&peer.pending)
    list_remove(&peer.readable)
    list_append(&core.switch.grave, &peer.grave)
    core.switch.peer_count -= 1
    core.switch.last_peer = NULL
    macs_forget(&core.switch.macs, peer)


cdef void peers_bury(Core* core) noexcept nogil:
    while not list_empty(&core.switch.grave):
        free(list_pop(&core.switch.grave))


cdef void peer_identified(Core* core, Peer* peer) noexcept nogil:
    """The supervisor said who a peer is: its identity is new."""
    core.switch.last_peer = NULL
    macs_forget(&core.switch.macs, peer)
    if peer.identity.known:
        macs_put(&core.switch.macs, peer.identity.mac, peer, False, core.now)


cdef Peer* peer_with(Core* core, const uint8_t* mac) noexcept nogil:
    """The peer that has a MAC, or NULL."""
    cdef Peer* peer
    if core.switch.last_peer != NULL and memcmp(core.switch.last_dst, mac, 6) == 0:
        return core.switch.last_peer
    peer = macs_find(&core.switch.macs, mac, core.now)
    if peer != NULL:
        memcpy(core.switch.last_dst, mac, 6)
        core.switch.last_peer = peer
    return peer


cdef void peer_learn(Core* core, Peer* peer, const uint8_t* mac) noexcept nogil:
    """A peer was heard with a MAC; nobody is heard as our own guest or as another that the supervisor named."""
    if memcmp(peer.last_mac, mac, 6) == 0 and core.now - peer.last_seen < LEARN_AGAIN:
        return
    memcpy(peer.last_mac, mac, 6)
    peer.last_seen = core.now
    if core.guest_mac_known and memcmp(core.guest_mac, mac, 6) == 0:
        return
    if macs_put(&core.switch.macs, mac, peer, True, core.now):
        core.switch.last_peer = NULL
