"""Which MAC is behind which peer."""

from libc.stdint cimport int64_t, uint8_t

from worker.core cimport MacTable, Peer


cdef int macs_init(MacTable* table, unsigned long long seed) noexcept nogil
cdef void macs_close(MacTable* table) noexcept nogil
cdef Peer* macs_find(const MacTable* table, const uint8_t* mac, int64_t now) noexcept nogil
cdef bint macs_put(MacTable* table, const uint8_t* mac, Peer* peer, bint learned, int64_t now) noexcept nogil
cdef void macs_forget(MacTable* table, const Peer* peer) noexcept nogil
