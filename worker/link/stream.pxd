"""A stream link: each frame behind its length."""

from libc.stdint cimport uint8_t

from worker.core cimport Core


cdef int stream_receive_bytes(Core* core, const uint8_t* data, size_t length, unsigned int* detail) noexcept nogil
cdef int stream_receive(Core* core, unsigned int* detail) noexcept nogil
cdef int stream_send(Core* core) noexcept nogil
