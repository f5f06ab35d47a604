"""IPv4 fragments of the guest."""

from worker.core cimport Core, Datagram
from worker.wire.ipv4 cimport Ipv4View


cdef Datagram* reassemble(Core* core, const Ipv4View* ip) noexcept nogil
cdef void reassembly_drop(Core* core, Datagram* d) noexcept nogil
cdef void reassembly_expire(Core* core) noexcept nogil
cdef void reassembly_close(Core* core) noexcept nogil
