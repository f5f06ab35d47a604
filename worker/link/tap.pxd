"""A tap device as the link: each read and write one frame."""

from worker.core cimport Core


cdef int tap_receive(Core* core, unsigned int* detail) noexcept nogil
cdef int tap_send(Core* core) noexcept nogil
