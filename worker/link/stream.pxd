"""A stream link: each frame behind its length."""

from worker.core cimport Core


cdef int stream_receive(Core* core, unsigned int* detail) noexcept nogil
cdef int stream_send(Core* core) noexcept nogil
