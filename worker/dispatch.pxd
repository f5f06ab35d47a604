"""Frames from the guest, each to what is responsible for it."""

from libc.stdint cimport uint8_t

from worker.core cimport Core


cdef void batch_done(Core* core) noexcept nogil
cdef void frame_from_guest(Core* core, const uint8_t* frame, size_t length) noexcept nogil
cdef void frame_to_gateway(Core* core, const uint8_t* frame, size_t length) noexcept nogil
