"""What the engine hands to Python."""

from libc.stdint cimport uint8_t, uint16_t

from worker.core cimport Core, UpcallEntry
from worker.wire.addr cimport Addr

cdef enum UpcallKind:
    # The values of worker.upcalls.Upcall.
    UPCALL_FRAME = 1
    UPCALL_VERDICT = 2
    UPCALL_STREAM = 3
    UPCALL_LINK_CLOSED = 4
    UPCALL_GUEST = 5
    UPCALL_ECHO = 6


cdef UpcallEntry* upcall_push(Core* core, int kind, const uint8_t* data, size_t length) noexcept nogil
cdef UpcallEntry* upcall_pop(Core* core) noexcept nogil
cdef void upcall_verdict(
    Core* core, int proto, const Addr* dst, uint16_t dport, const uint8_t* frame, size_t length
) noexcept nogil
cdef void upcall_text(Core* core, int kind, const char* text, int number) noexcept nogil
