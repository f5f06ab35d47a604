"""What no VM may be to others over IPv6."""

from libc.stdint cimport uint8_t


cdef bint is_routers(const uint8_t* packet, size_t length) noexcept nogil
