"""TCP flows: connections of the guest and the host sockets behind them."""

from libc.stdint cimport uint32_t

from worker.core cimport Core, FlowKey, TcpFlow
from worker.wire.tcp cimport TcpView


cdef TcpFlow* new_flow(Core* core, const FlowKey* key) noexcept nogil
cdef void destroy(Core* core, TcpFlow* flow, bint reset_host) noexcept nogil
cdef void host_is_up(Core* core, TcpFlow* flow) noexcept nogil
cdef void connect_failed(Core* core, TcpFlow* flow, int error) noexcept nogil
cdef void want_output(Core* core, TcpFlow* flow) noexcept nogil
cdef bint tcp_from_guest(Core* core, TcpFlow* flow, const TcpView* s) noexcept nogil
cdef void tcp_batch_done(Core* core) noexcept nogil
cdef void tcp_host_event(Core* core, TcpFlow* flow, uint32_t events) noexcept nogil
cdef bint tcp_serve_host_queue(Core* core) noexcept nogil
cdef void tcp_serve_out_queue(Core* core) noexcept nogil
cdef void tcp_timer(Core* core, TcpFlow* flow) noexcept nogil
cdef void tcp_reset_all(Core* core) noexcept nogil
cdef void tcp_bury(Core* core) noexcept nogil
