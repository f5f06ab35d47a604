"""The link, whichever kind it is."""

from worker.core cimport Core


cdef int link_init(Core* core) noexcept nogil
cdef void link_close(Core* core) noexcept nogil
cdef int link_receive(Core* core, unsigned int* detail) noexcept nogil
cdef int link_flush(Core* core) noexcept nogil
