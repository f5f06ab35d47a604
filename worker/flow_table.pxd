"""Every flow by its addresses and ports."""

from libc.stdint cimport uint32_t

from worker.core cimport FlowHead, FlowKey, FlowTable


cdef int table_init(FlowTable* table, unsigned long long seed) noexcept nogil
cdef void table_close(FlowTable* table) noexcept nogil
cdef FlowHead* table_find(const FlowTable* table, const FlowKey* key) noexcept nogil
cdef bint table_insert(FlowTable* table, FlowHead* flow) noexcept nogil
cdef void table_remove(FlowTable* table, FlowHead* flow) noexcept nogil
