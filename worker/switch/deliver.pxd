"""A datagram of a peer onto the guest's link."""

from libc.stdint cimport uint8_t

from worker.core cimport Core


cdef size_t deliver(Core* core, uint8_t* data, size_t size) noexcept nogil
