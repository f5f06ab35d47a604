"""TCP from host sockets to the guest."""

from libc.stdint cimport uint32_t

from worker.core cimport Core, TcpFlow


cdef void tcp_host_event(Core* core, TcpFlow* flow, uint32_t events) noexcept nogil
cdef bint tcp_serve_host_queue(Core* core) noexcept nogil
cdef void tcp_serve_out_queue(Core* core) noexcept nogil
