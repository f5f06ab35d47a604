"""By which address and port the guest sees a client of a forwarded port."""

from libc.stdint cimport uint16_t

from worker.core cimport Core
from worker.wire.addr cimport Addr, addr_in_prefix, addr_is_v4, addr_v4, is_loopback

cdef enum:
    FIRST_EPHEMERAL = 49152  # RFC 6335 section 6


cdef inline Addr client_as_seen(const Core* core, const Addr* client, bint keep_source) noexcept nogil:
    """The client's own address where it is to be kept and the guest can answer it, else the gateway's.

    The guest cannot answer IPv6, its own loopback, or what it takes for a neighbour that is not there.
    """
    if (
        keep_source and addr_is_v4(client) and addr_v4(client)[0] != 0 and not is_loopback(client)
        and not addr_in_prefix(client, &core.subnet, core.prefix_bits)
    ):
        return client[0]
    return core.gateway_ip


cdef inline uint16_t next_ephemeral_port(Core* core) noexcept nogil:
    core.next_port = core.next_port + 1 if FIRST_EPHEMERAL <= core.next_port < 65535 else FIRST_EPHEMERAL
    return core.next_port
