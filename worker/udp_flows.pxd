"""UDP mappings of the guest, and forwarded UDP ports."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from worker.core cimport Core, FlowKey, Listener, UdpFlow, Verdict
from worker.wire.addr cimport Addr
from worker.wire.ipv4 cimport Ipv4View
from worker.wire.udp cimport UdpView


cdef bint udp_to_guest(
    Core* core, const Addr* src, uint16_t sport, const Addr* dst, uint16_t dport, const uint8_t* dst_mac,
    const uint8_t* payload, size_t length
) noexcept nogil
cdef UdpFlow* udp_find(const Core* core, const FlowKey* key) noexcept nogil
cdef void udp_carry(
    Core* core, const FlowKey* key, const Ipv4View* ip, const UdpView* u, const Verdict* verdict
) noexcept nogil
cdef void udp_batch_done(Core* core) noexcept nogil
cdef void udp_to_client(Core* core, UdpFlow* flow, const UdpView* u) noexcept nogil
cdef void udp_host_event(Core* core, UdpFlow* flow, uint32_t events) noexcept nogil
cdef bint udp_serve(Core* core) noexcept nogil
cdef bint udp_read_listener(Core* core, Listener* listener) noexcept nogil
cdef void udp_forget_clients(Core* core, Listener* listener) noexcept nogil
cdef void udp_timer(Core* core, UdpFlow* flow) noexcept nogil
cdef void udp_close_all(Core* core) noexcept nogil
cdef void udp_bury(Core* core) noexcept nogil
