# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Which MAC is behind which peer (IEEE 802.1Q's filtering database): open addressing, half full at most.

What the supervisor told stays until it says otherwise; what was learned from frames is forgotten MAX_AGE after the last
of them. The hash is keyed with a random seed: a guest cannot choose MACs that all fall together. Entries go only when
the table is made anew, so that no search meets a gap.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from worker.core cimport MAX_MACS, MacEntry

__all__ = ["MacTableFace"]

cdef enum:
    SLOTS = MAX_MACS * 2  # a power of two
    MAX_AGE = 300000000  # us; 802.1Q's recommended ageing time
    FULL_FOR = 1000000  # us


cdef int macs_init(MacTable* table, unsigned long long seed) noexcept nogil:
    """0, or -1: no memory."""
    table.entries = <MacEntry*>calloc(SLOTS, sizeof(MacEntry))
    table.count = 0
    table.full_until = 0
    table.seed = seed
    return 0 if table.entries != NULL else -1


cdef void macs_close(MacTable* table) noexcept nogil:
    free(table.entries)
    table.entries = NULL


cdef MacEntry* slot_of(const MacTable* table, const uint8_t* mac) noexcept nogil:
    """The slot that a MAC has, or would have."""
    cdef uint64_t h = table.seed
    cdef uint32_t at
    memcpy(&h, mac, 6)
    h = (h ^ table.seed) * <uint64_t>0x9E3779B97F4A7C15
    h = (h ^ (h >> 29)) * <uint64_t>0xBF58476D1CE4E5B9
    at = <uint32_t>(h >> 32) & (SLOTS - 1)
    while table.entries[at].peer != NULL and memcmp(table.entries[at].mac, mac, 6) != 0:
        at = (at + 1) & (SLOTS - 1)
    return &table.entries[at]


cdef inline bint is_stale(const MacEntry* entry, int64_t now) noexcept nogil:
    return entry.learned and now - entry.seen > MAX_AGE


cdef Peer* macs_find(const MacTable* table, const uint8_t* mac, int64_t now) noexcept nogil:
    """The peer that has a MAC, or NULL."""
    cdef const MacEntry* entry = slot_of(table, mac)
    return entry.peer if entry.peer != NULL and not is_stale(entry, now) else NULL


cdef void remake(MacTable* table, const Peer* without, int64_t now) noexcept nogil:
    """Drop the entries of a peer, and those that are stale. Without memory for it they stay: the peer must live on."""
    cdef MacEntry* old = table.entries
    cdef MacEntry* entries = <MacEntry*>calloc(SLOTS, sizeof(MacEntry))
    cdef int i
    if entries == NULL:
        for i in range(SLOTS):
            if old[i].peer == without:
                old[i].learned = True  # stale from now on, for ever
                old[i].seen = -MAX_AGE - 1
        return
    table.entries = entries
    table.count = 0
    for i in range(SLOTS):
        if old[i].peer != NULL and old[i].peer != without and not is_stale(&old[i], now):
            memcpy(slot_of(table, old[i].mac), &old[i], sizeof(MacEntry))
            table.count += 1
    free(old)


cdef bint macs_put(MacTable* table, const uint8_t* mac, Peer* peer, bint learned, int64_t now) noexcept nogil:
    """A MAC is behind a peer. False: the table is full, or the supervisor said otherwise."""
    cdef MacEntry* entry = slot_of(table, mac)
    if entry.peer == NULL:
        if table.count >= MAX_MACS:
            if now < table.full_until:
                return False
            remake(table, NULL, now)
            table.full_until = now + FULL_FOR
            if table.count >= MAX_MACS:
                return False
            entry = slot_of(table, mac)
        table.count += 1
    elif learned and not entry.learned and entry.peer != peer:
        return False
    elif learned and not entry.learned:
        return True
    memcpy(entry.mac, mac, 6)
    entry.peer = peer
    entry.learned = learned
    entry.seen = now
    return True


cdef void macs_forget(MacTable* table, const Peer* peer) noexcept nogil:
    """Nothing is behind a peer any more."""
    remake(table, peer, 0)


@cython.final
cdef class MacTableFace:
    cdef MacTable table

    def __cinit__(self, unsigned long long seed):
        if macs_init(&self.table, seed):
            raise MemoryError

    def __dealloc__(self):
        macs_close(&self.table)

    def find(self, bytes mac, int64_t now):
        return <size_t>macs_find(&self.table, <const uint8_t*><const char*>mac, now)

    def put(self, bytes mac, size_t peer, bint learned, int64_t now):
        return bool(macs_put(&self.table, <const uint8_t*><const char*>mac, <Peer*>peer, learned, now))

    def forget(self, size_t peer):
        macs_forget(&self.table, <const Peer*>peer)
