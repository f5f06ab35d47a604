"""TCP from the guest to host sockets."""

from worker.core cimport Core, TcpFlow
from worker.wire.tcp cimport TcpView


cdef bint tcp_from_guest(Core* core, TcpFlow* flow, const TcpView* s) noexcept nogil
cdef void flush_to_host(Core* core, TcpFlow* flow) noexcept nogil
cdef void tcp_batch_done(Core* core) noexcept nogil
