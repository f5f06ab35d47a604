"""A link of messages: each frame a message of a SEQPACKET or datagram socket."""

from worker.core cimport Core


cdef int messages_init(Core* core) noexcept nogil
cdef void messages_close(Core* core) noexcept nogil
cdef int messages_receive(Core* core, unsigned int* detail) noexcept nogil
cdef int messages_send(Core* core) noexcept nogil
