"""What happens to traffic for a destination, as Python decided it once."""

from libc.stdint cimport uint16_t, uint32_t

from worker.core cimport Core, Verdict
from worker.wire.addr cimport Addr


cdef int verdicts_init(Core* core) noexcept nogil
cdef void verdicts_close(Core* core) noexcept nogil
cdef void verdicts_clear(Core* core) noexcept nogil
cdef const Verdict* verdict_find(const Core* core, uint32_t proto, const Addr* dst, uint16_t dport) noexcept nogil
cdef void verdict_set(Core* core, const Verdict* verdict) noexcept nogil
