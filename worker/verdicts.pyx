# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""What happens to traffic for a destination (protocol, address, port), as Python decided it once.

A small open-addressing table. A new connection to a known destination costs no Python; when the table is three
quarters full it is emptied, and the destinations in use are asked for again.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from worker.core cimport VERDICT_SLOTS
from worker.wire.addr cimport addr_eq


cdef int verdicts_init(Core* core) noexcept nogil:
    """0, or -1: no memory."""
    core.verdicts = <Verdict*>calloc(VERDICT_SLOTS, sizeof(Verdict))
    return 0 if core.verdicts != NULL else -1


cdef void verdicts_close(Core* core) noexcept nogil:
    free(core.verdicts)
    core.verdicts = NULL


cdef void verdicts_clear(Core* core) noexcept nogil:
    """Forget everything: the policy changed."""
    memset(core.verdicts, 0, VERDICT_SLOTS * sizeof(Verdict))
    core.verdict_count = 0


cdef uint32_t place(const Core* core, uint32_t proto, const Addr* dst, uint16_t dport) noexcept nogil:
    """The slot that holds the destination, or the free one where it would go."""
    cdef uint64_t h = (dst.lo ^ dst.hi ^ core.flows.seed ^ (<uint64_t>dport << 8) ^ proto)
    cdef uint32_t i
    h *= <uint64_t>0x9E3779B97F4A7C15
    h = (h ^ (h >> 32)) * <uint64_t>0xC2B2AE3D27D4EB4F  # an address differs in its high bits: bring them down
    i = <uint32_t>(h >> 32) & (VERDICT_SLOTS - 1)
    while core.verdicts[i].used and not (
        core.verdicts[i].dport == dport and core.verdicts[i].proto == proto and addr_eq(&core.verdicts[i].dst, dst)
    ):
        i = (i + 1) & (VERDICT_SLOTS - 1)
    return i


cdef const Verdict* verdict_find(const Core* core, uint32_t proto, const Addr* dst, uint16_t dport) noexcept nogil:
    """The verdict, or NULL: Python must be asked."""
    cdef const Verdict* v = &core.verdicts[place(core, proto, dst, dport)]
    return v if v.used else NULL


cdef void verdict_set(Core* core, const Verdict* verdict) noexcept nogil:
    cdef uint32_t i
    if core.verdict_count >= VERDICT_SLOTS * 3 / 4:
        verdicts_clear(core)
    i = place(core, verdict.proto, &verdict.dst, verdict.dport)
    if not core.verdicts[i].used:
        core.verdict_count += 1
    core.verdicts[i] = verdict[0]
    core.verdicts[i].used = True
