# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Every flow by its addresses and ports: a chained hash table that doubles as it fills.

The hash is keyed with a random seed, so that a guest cannot choose ports and addresses that all fall into one bucket.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

cdef enum:
    FIRST_BUCKETS = 256


cdef inline uint64_t mix(uint64_t h, uint64_t v) noexcept nogil:
    h = (h ^ v) * <uint64_t>0x9E3779B97F4A7C15
    return h ^ (h >> 29)


cdef uint32_t hash_of(const FlowTable* table, const FlowKey* key) noexcept nogil:
    cdef uint64_t h = mix(table.seed, key.guest.lo)
    h = mix(h, key.guest.hi ^ key.peer.hi)
    h = mix(h, key.peer.lo)
    h = mix(h, (<uint64_t>key.proto << 32) | (<uint32_t>key.guest_port << 16) | key.peer_port)
    h = mix(h, table.seed >> 17)
    return <uint32_t>(h >> 32)


cdef int table_init(FlowTable* table, unsigned long long seed) noexcept nogil:
    """0, or -1: no memory."""
    table.buckets = <FlowHead**>calloc(FIRST_BUCKETS, sizeof(FlowHead*))
    table.mask = FIRST_BUCKETS - 1
    table.count = 0
    table.seed = seed
    return 0 if table.buckets != NULL else -1


cdef void table_close(FlowTable* table) noexcept nogil:
    free(table.buckets)
    table.buckets = NULL


cdef FlowHead* table_find(const FlowTable* table, const FlowKey* key) noexcept nogil:
    """The flow, or NULL."""
    cdef uint32_t h = hash_of(table, key)
    cdef FlowHead* flow = table.buckets[h & table.mask]
    while flow != NULL:
        if flow.hash == h and memcmp(&flow.key, key, sizeof(FlowKey)) == 0:
            return flow
        flow = flow.next_in_bucket
    return NULL


cdef void grow(FlowTable* table) noexcept nogil:
    cdef uint32_t size = (table.mask + 1) * 2
    cdef FlowHead** buckets = <FlowHead**>calloc(size, sizeof(FlowHead*))
    cdef FlowHead* flow
    cdef FlowHead* following
    cdef uint32_t i
    if buckets == NULL:
        return  # longer chains rather than a lost flow
    for i in range(table.mask + 1):
        flow = table.buckets[i]
        while flow != NULL:
            following = flow.next_in_bucket
            flow.next_in_bucket = buckets[flow.hash & (size - 1)]
            buckets[flow.hash & (size - 1)] = flow
            flow = following
    free(table.buckets)
    table.buckets = buckets
    table.mask = size - 1


cdef bint table_insert(FlowTable* table, FlowHead* flow) noexcept nogil:
    """Add a flow whose key is set; False: the key is taken."""
    if table_find(table, &flow.key) != NULL:
        return False
    if table.count > table.mask:
        grow(table)
    flow.hash = hash_of(table, &flow.key)
    flow.next_in_bucket = table.buckets[flow.hash & table.mask]
    table.buckets[flow.hash & table.mask] = flow
    table.count += 1
    return True


cdef void table_remove(FlowTable* table, FlowHead* flow) noexcept nogil:
    cdef FlowHead** at = &table.buckets[flow.hash & table.mask]
    while at[0] != NULL and at[0] != flow:
        at = &at[0].next_in_bucket
    if at[0] == flow:
        at[0] = flow.next_in_bucket
        table.count -= 1
