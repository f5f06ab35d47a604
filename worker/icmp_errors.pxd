"""ICMP errors that the gateway sends to the guest."""

from libc.stdint cimport uint8_t, uint32_t

from worker.core cimport Core
from worker.wire.addr cimport Addr


cdef void icmp_error(
    Core* core, const Addr* src, uint8_t kind, uint8_t code, uint32_t rest, const uint8_t* quote, size_t quote_len
) noexcept nogil
cdef int unreachable_code(int error) noexcept nogil
