# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""The engine's structs as Python's values, and the other way round."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from worker.core cimport FLOW_TCP, MAX_GUEST_IPS, TcpFlow, UdpFlow
from worker.upcall_queue cimport (
    UPCALL_ECHO, UPCALL_FRAME, UPCALL_GUEST, UPCALL_LINK_CLOSED, UPCALL_STREAM, UPCALL_VERDICT,
)
from worker.wire.addr cimport addr_from_16, addr_is_v4, addr_v4

__all__ = ["STATES"]

STATES = (
    "CLOSED", "LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING",
    "LAST-ACK", "TIME-WAIT",
)


cdef Addr address(bytes packed) except *:
    """16 bytes. Raises ValueError."""
    if len(packed) != 16:
        raise ValueError(f"address of {len(packed)} bytes, expected 16")
    return addr_from_16(<const uint8_t*><const char*>packed)


cdef bytes packed(const Addr* addr):
    return PyBytes_FromStringAndSize(<const char*>addr, 16)


cdef str text(const Addr* addr):
    cdef const uint8_t* v4 = addr_v4(addr)
    if addr_is_v4(addr):
        return f"{v4[0]}.{v4[1]}.{v4[2]}.{v4[3]}"
    return packed(addr).hex(":", 2)


cdef int set_identity(Identity* identity, bytes mac, addresses) except -1:
    """Raises ValueError on what is none; then nothing has changed."""
    cdef Identity made
    memset(&made, 0, sizeof(made))
    if len(mac) not in (0, 6) or len(addresses) > MAX_GUEST_IPS:
        raise ValueError(f"a MAC has 6 bytes, and a guest at most {MAX_GUEST_IPS} addresses")
    if mac:
        made.known = True
        memcpy(made.mac, <const char*>mac, 6)
    for packed_address in addresses:
        made.ips[made.ip_count] = address(packed_address)
        made.ip_count += 1
    identity[0] = made
    return 0


cdef tuple upcall_values(const UpcallEntry* entry):
    """As `worker.upcalls` describes it."""
    cdef const char* data = <const char*>entry.data
    cdef Addr ip
    content = PyBytes_FromStringAndSize(data, entry.length)
    if entry.kind == UPCALL_FRAME or entry.kind == UPCALL_ECHO:
        return (entry.kind, content)
    if entry.kind == UPCALL_VERDICT:
        return (entry.kind, entry.number, packed(&entry.dst), entry.dport, content)
    if entry.kind == UPCALL_STREAM:
        return (entry.kind, entry.number, packed(&entry.src), entry.sport, packed(&entry.dst), entry.dport)
    if entry.kind == UPCALL_GUEST:
        memcpy(&ip, data + 6, 16)
        return (entry.kind, content[:6], content[6:] if ip.hi or ip.lo else b"")
    return (UPCALL_LINK_CLOSED, content.decode("utf-8", "replace"), bool(entry.number))


cdef tuple flow_values(const FlowHead* head):
    """As `Engine.flows` gives it."""
    cdef const TcpFlow* tcp
    cdef const UdpFlow* udp
    cdef tuple who = (text(&head.key.guest), head.key.guest_port, text(&head.key.peer), head.key.peer_port)
    if head.key.proto == FLOW_TCP:
        tcp = <const TcpFlow*>head
        return ("tcp", *who, STATES[tcp.tcb.state], tcp.from_guest, tcp.to_guest)
    udp = <const UdpFlow*>head
    return ("udp", *who, "", udp.from_guest, udp.to_guest)
