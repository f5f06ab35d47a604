# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Datagrams that a peer's socket has no room for wait here, in order, until it has.

Without privileges a system lets little wait in a socket: by default (net.core.wmem_max) six packets of 64 KiB, which a
guest's TCP sends at once. What is more than PEER_BACKLOG for one peer, or ALL_BACKLOGS for all, is lost as at a switch:
a slow VM costs the others no time, and no more memory than that.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from worker.core cimport TAG_PEER, Held, count, token_of
from worker.counters cimport C_SYSCALLS_SWITCH_SEND
from worker.hostio cimport MSG_DONTWAIT, MSG_NOSIGNAL, send
from worker.readiness cimport READY_EDGE, READY_IN, READY_OUT, ready_modify, ready_rearm

cdef enum:
    PEER_BACKLOG = 3145728  # bytes
    ALL_BACKLOGS = 16777216


cdef void watch(Core* core, Peer* peer, bint for_room) noexcept nogil:
    """Be told when the peer's socket has room. Off while nothing waits: each read of the peer's would wake us."""
    ready_modify(
        &core.ready, peer.fd, token_of(TAG_PEER, peer), READY_IN | READY_EDGE | (READY_OUT if for_room else 0)
    )


cdef bint backlog_hold(Core* core, Peer* peer, const iovec* pieces, int n) noexcept nogil:
    """Keep a copy of a datagram that has no room, or that others of this peer's wait before; False: too much waits."""
    cdef Held* held
    cdef uint8_t* at
    cdef size_t size = 0
    cdef int i
    for i in range(n):
        size += pieces[i].iov_len
    if peer.backlog.size + size > PEER_BACKLOG or core.switch.held + size > ALL_BACKLOGS:
        return False
    held = <Held*>malloc(sizeof(Held) + size)
    if held == NULL:
        return False
    held.next = NULL
    held.size = size
    at = <uint8_t*>(held + 1)
    for i in range(n):
        memcpy(at, pieces[i].iov_base, pieces[i].iov_len)
        at += pieces[i].iov_len
    if peer.backlog.first == NULL:
        peer.backlog.first = held
        watch(core, peer, True)
    else:
        peer.backlog.last.next = held
    peer.backlog.last = held
    peer.backlog.size += size
    core.switch.held += size
    return True


cdef void forget_first(Core* core, Peer* peer) noexcept nogil:
    cdef Held* held = peer.backlog.first
    peer.backlog.first = held.next
    peer.backlog.size -= held.size
    core.switch.held -= held.size
    free(held)


cdef void backlog_send(Core* core, Peer* peer) noexcept nogil:
    """The peer's socket has room. One that is broken loses what waits."""
    if peer.backlog.first == NULL:
        return
    while peer.backlog.first != NULL:
        count(core, C_SYSCALLS_SWITCH_SEND)
        if send(peer.fd, peer.backlog.first + 1, peer.backlog.first.size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            if errno == EAGAIN:
                ready_rearm(&core.ready, peer.fd, READY_OUT)
                return
        forget_first(core, peer)
    watch(core, peer, False)


cdef void backlog_forget(Core* core, Peer* peer) noexcept nogil:
    """The socket is given up."""
    while peer.backlog.first != NULL:
        forget_first(core, peer)
