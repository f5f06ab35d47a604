"""What the network said about datagrams of a host socket."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from worker.wire.addr cimport Addr


cdef struct HostError:
    Addr destination  # where the datagram was going
    uint16_t port
    uint8_t kind  # ICMP type and code
    uint8_t code
    uint32_t mtu
    bint has_offender
    Addr offender


cdef void errors_enable(int fd) noexcept nogil
cdef bint errors_next(int fd, HostError* out) noexcept nogil
