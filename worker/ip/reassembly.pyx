# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""IPv4 fragments of the guest put together (RFC 791 section 3.2, RFC 1858).

At most MAX_DATAGRAMS at a time, for 30 s each; when all places are taken the oldest makes room. Each datagram has one
buffer of the largest size and a bit for every 8 bytes. A fragment that overlaps what is there ends the datagram (what
RFC 5722 asks for IPv6; an honest sender has no reason to): only an exact repetition is ignored.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from worker.core cimport MAX_DATAGRAMS, count
from worker.counters cimport C_IPV4_FRAGMENTS, C_IPV4_REASSEMBLED, C_IPV4_REASSEMBLY_DROPPED
from worker.wire.addr cimport addr_eq
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN
from worker.wire.ipv4 cimport IPV4_HEADER_LEN, IPV4_MAX_LEN, put_ipv4

cdef enum:
    LIFETIME = 30000000  # us; RFC 1122 3.3.2 has 60 to 120 s for the open Internet
    MAX_PAYLOAD = IPV4_MAX_LEN - IPV4_HEADER_LEN
    BUFFER_LEN = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + 65536


cdef void forget(Core* core, Datagram* d) noexcept nogil:
    if d.used:
        free(d.data)
        d.data = NULL
        d.used = False
        core.datagram_count -= 1


cdef void reassembly_drop(Core* core, Datagram* d) noexcept nogil:
    """The datagram has been handled."""
    forget(core, d)


cdef Datagram* place(Core* core, const Ipv4View* ip) noexcept nogil:
    """The datagram that the fragment belongs to, a new one if there is none; NULL: no memory."""
    cdef Datagram* d
    cdef Datagram* oldest = &core.datagrams[0]
    cdef int i
    for i in range(MAX_DATAGRAMS):
        d = &core.datagrams[i]
        if d.used and d.ident == ip.ident and d.proto == ip.proto and addr_eq(&d.src, &ip.src) and addr_eq(
            &d.dst, &ip.dst
        ):
            return d
        if oldest.used and (not d.used or d.deadline < oldest.deadline):
            oldest = d
    if oldest.used:
        count(core, C_IPV4_REASSEMBLY_DROPPED)
        forget(core, oldest)
    d = oldest
    memset(d, 0, sizeof(Datagram))
    d.data = <uint8_t*>malloc(BUFFER_LEN)
    if d.data == NULL:
        return NULL
    d.used = True
    d.src = ip.src
    d.dst = ip.dst
    d.ident = ip.ident
    d.proto = ip.proto
    d.deadline = core.now + LIFETIME
    core.datagram_count += 1
    return d


cdef int mark(Datagram* d, uint32_t offset, uint32_t length) noexcept nogil:
    """Note the fragment's bytes as present: 0 all new, 1 all known, -1 some of both."""
    cdef uint32_t block
    cdef uint32_t first = offset >> 3
    cdef uint32_t last = (offset + length + 7) >> 3
    cdef uint32_t known = 0
    cdef uint64_t bit
    for block in range(first, last):
        bit = (<uint64_t>1) << (block & 63)
        if d.blocks[block >> 6] & bit:
            known += 1
        d.blocks[block >> 6] |= bit
    if known == 0:
        return 0
    return 1 if known == last - first else -1


cdef Datagram* reassemble(Core* core, const Ipv4View* ip) noexcept nogil:
    """Take in a fragment. When it completes its datagram: that, its buffer holding an IP header and `length` bytes
    of payload after room for an Ethernet header, to be given back with `reassembly_drop`. Else NULL."""
    cdef uint32_t offset = ip.fragment_offset
    cdef uint32_t length = <uint32_t>ip.payload.left
    cdef Datagram* d
    cdef int known
    count(core, C_IPV4_FRAGMENTS)
    if length == 0 or length > MAX_PAYLOAD - offset or offset > MAX_PAYLOAD or (ip.more_fragments and length & 7):
        count(core, C_IPV4_REASSEMBLY_DROPPED)
        return NULL
    d = place(core, ip)
    if d == NULL:
        return NULL
    known = mark(d, offset, length)
    if known == 1:
        return NULL
    if offset + length > d.end:
        d.end = offset + length
    if not ip.more_fragments:
        known = -1 if d.length else known  # a second end
        d.length = offset + length
    if known < 0 or (d.length and d.end > d.length):
        count(core, C_IPV4_REASSEMBLY_DROPPED)
        forget(core, d)
        return NULL
    memcpy(d.data + ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + offset, ip.payload.pos, length)
    d.have += length
    if d.length == 0 or d.have < d.length:
        return NULL
    put_ipv4(d.data + ETHERNET_HEADER_LEN, &d.src, &d.dst, d.proto, d.length, d.ident, 0)
    count(core, C_IPV4_REASSEMBLED)
    return d


cdef void reassembly_expire(Core* core) noexcept nogil:
    """Drop what has waited too long."""
    cdef int i
    if core.datagram_count == 0:
        return
    for i in range(MAX_DATAGRAMS):
        if core.datagrams[i].used and core.datagrams[i].deadline <= core.now:
            count(core, C_IPV4_REASSEMBLY_DROPPED)
            forget(core, &core.datagrams[i])


cdef void reassembly_close(Core* core) noexcept nogil:
    cdef int i
    for i in range(MAX_DATAGRAMS):
        forget(core, &core.datagrams[i])
