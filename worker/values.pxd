"""The engine's structs as Python's values, and the other way round."""

from worker.core cimport FlowHead, Identity, UpcallEntry
from worker.wire.addr cimport Addr


cdef Addr address(bytes packed) except *
cdef bytes packed(const Addr* addr)
cdef int set_identity(Identity* identity, bytes mac, addresses) except -1
cdef tuple upcall_values(const UpcallEntry* entry)
cdef tuple flow_values(const FlowHead* head)
