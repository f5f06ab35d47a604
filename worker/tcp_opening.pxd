"""How TCP flows come to be: the guest dials out, or the host comes in by a forwarded port."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from worker.core cimport Core, FlowKey, Listener, TcpFlow, Verdict
from worker.wire.addr cimport Addr
from worker.wire.ipv4 cimport Ipv4View
from worker.wire.tcp cimport TcpView


cdef void tcp_new_flow(
    Core* core, const FlowKey* key, const Ipv4View* ip, const TcpView* s, const Verdict* verdict
) noexcept nogil
cdef void tcp_no_flow(Core* core, const FlowKey* key, const TcpView* s) noexcept nogil
cdef void tcp_accept(Core* core, Listener* listener) noexcept nogil
cdef TcpFlow* call_guest(
    Core* core, int fd, const Addr* guest, uint16_t guest_port, const Addr* client, uint16_t client_port
) noexcept nogil
cdef void send_first(Core* core, TcpFlow* flow, const uint8_t* data, uint32_t length) noexcept nogil
