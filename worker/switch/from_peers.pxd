"""Frames of other VMs of the network to the guest."""

from libc.stdint cimport uint32_t

from worker.core cimport Core, Peer


cdef void switch_event(Core* core, Peer* peer, uint32_t what) noexcept nogil
cdef bint switch_waits(const Core* core) noexcept nogil
cdef void switch_receive(Core* core) noexcept nogil
cdef void switch_sent(Core* core) noexcept nogil
