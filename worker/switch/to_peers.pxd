"""Frames of the guest to other VMs of its network."""

from libc.stdint cimport uint8_t

from worker.core cimport Core


cdef void switch_unicast(Core* core, const uint8_t* frame, size_t length) noexcept nogil
cdef void switch_flood(Core* core, const uint8_t* frame, size_t length) noexcept nogil
cdef void switch_batch_done(Core* core) noexcept nogil
