"""TCP flows: connections of the guest, and the host sockets behind them; how they live and end."""

from libc.stdint cimport int64_t, uint32_t

from worker.core cimport Core, FlowKey, TcpFlow


cdef TcpFlow* new_flow(Core* core, const FlowKey* key) noexcept nogil
cdef void share_window(const Core* core, TcpFlow* flow) noexcept nogil
cdef void close_host(Core* core, TcpFlow* flow, bint reset) noexcept nogil
cdef void destroy(Core* core, TcpFlow* flow, bint reset_host) noexcept nogil
cdef void abort(Core* core, TcpFlow* flow) noexcept nogil
cdef void host_is_up(Core* core, TcpFlow* flow) noexcept nogil
cdef void connect_failed(Core* core, TcpFlow* flow, int error) noexcept nogil
cdef void want_output(Core* core, TcpFlow* flow) noexcept nogil
cdef void schedule(Core* core, TcpFlow* flow) noexcept nogil
cdef void tcp_send_delayed_acks(Core* core) noexcept nogil
cdef int64_t tcp_next_delayed_ack(const Core* core) noexcept nogil
cdef void tcp_timer(Core* core, TcpFlow* flow) noexcept nogil
cdef void tcp_reset_all(Core* core) noexcept nogil
cdef void tcp_bury(Core* core) noexcept nogil
