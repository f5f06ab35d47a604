"""The other VMs of the network: who they are, and which of them a frame is for."""

from libc.stdint cimport int64_t, uint8_t

from worker.core cimport Core, Peer
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN

cdef enum:
    VLAN_TAG_LEN = 4
    MAX_PACKET = 65535


cdef void switch_init(Core* core) noexcept nogil
cdef int switch_join(Core* core, bint port_security, unsigned long long seed) noexcept nogil
cdef void switch_close(Core* core) noexcept nogil
cdef Peer* peer_find(Core* core, unsigned int number) noexcept nogil
cdef Peer* peer_add(Core* core, unsigned int number) noexcept nogil
cdef int peer_connect(Core* core, Peer* peer, int fd) noexcept nogil
cdef void peer_remove(Core* core, Peer* peer) noexcept nogil
cdef void peer_identified(Core* core, Peer* peer) noexcept nogil
cdef Peer* peer_with(Core* core, const uint8_t* mac) noexcept nogil
cdef void peer_learn(Core* core, Peer* peer, const uint8_t* mac) noexcept nogil
cdef void peers_bury(Core* core) noexcept nogil


cdef inline size_t longest_frame(const Core* core, bint to_be_cut) noexcept nogil:
    """How long a frame between VMs may be; one that holds several TCP segments may be as long as an IP packet."""
    return (MAX_PACKET if to_be_cut else core.mtu) + ETHERNET_HEADER_LEN + VLAN_TAG_LEN
