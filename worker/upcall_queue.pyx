# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""What the engine hands to Python: a bounded queue, so that a guest's flood costs counted drops and no memory."""

from libc.stdint cimport uint8_t, uint16_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset, strlen

from worker.core cimport MAX_UPCALL_BYTES, MAX_UPCALLS, count
from worker.counters cimport C_UPCALLS_DROPPED, C_UPCALLS_QUEUED, C_UPCALLS_VERDICTS


cdef UpcallEntry* append(Core* core, int kind, const uint8_t* data, size_t length) noexcept nogil:
    cdef UpcallEntry* entry = <UpcallEntry*>malloc(sizeof(UpcallEntry) + length)
    if entry == NULL:
        count(core, C_UPCALLS_DROPPED)
        return NULL
    memset(entry, 0, sizeof(UpcallEntry))
    entry.kind = kind
    entry.length = <unsigned int>length
    if length:
        memcpy(entry.data, data, length)
    if core.upcalls.last != NULL:
        core.upcalls.last.next = entry
    else:
        core.upcalls.first = entry
    core.upcalls.last = entry
    core.upcalls.count += 1
    core.upcalls.bytes += length
    count(core, C_UPCALLS_QUEUED)
    return entry


cdef UpcallEntry* upcall_push(Core* core, int kind, const uint8_t* data, size_t length) noexcept nogil:
    """Queue an upcall with a copy of `data`; NULL (and counted): the queue is full."""
    if core.upcalls.count >= MAX_UPCALLS or core.upcalls.bytes + length > MAX_UPCALL_BYTES:
        count(core, C_UPCALLS_DROPPED)
        return NULL
    return append(core, kind, data, length)


cdef UpcallEntry* upcall_pop(Core* core) noexcept nogil:
    """The oldest upcall, to be freed by the caller; NULL: none waits."""
    cdef UpcallEntry* entry = core.upcalls.first
    if entry != NULL:
        core.upcalls.first = entry.next
        if entry.next == NULL:
            core.upcalls.last = NULL
        core.upcalls.count -= 1
        core.upcalls.bytes -= entry.length
    return entry


cdef void upcall_verdict(
    Core* core, int proto, const Addr* dst, uint16_t dport, const uint8_t* frame, size_t length
) noexcept nogil:
    """Ask what to do with traffic for a destination; the frame comes back by `inject`."""
    cdef UpcallEntry* entry = upcall_push(core, UPCALL_VERDICT, frame, length)
    if entry != NULL:
        entry.number = proto
        entry.dst = dst[0]
        entry.dport = dport
        count(core, C_UPCALLS_VERDICTS)


cdef void upcall_text(Core* core, int kind, const char* text, int number) noexcept nogil:
    """Queue what must not be lost, even when the queue is full."""
    cdef UpcallEntry* entry = append(core, kind, <const uint8_t*>text, strlen(text))
    if entry != NULL:
        entry.number = number
