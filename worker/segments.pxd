"""TCP segments as frames on the link."""

from libc.stdint cimport uint32_t

from worker.core cimport Core, FlowKey, TcpFlow
from worker.tcp.tcb cimport OutSegment


cdef void emit_segment(Core* core, TcpFlow* flow, const OutSegment* segment) noexcept nogil
cdef void emit_reset(Core* core, const FlowKey* key, uint32_t seq, uint32_t ack, unsigned int flags) noexcept nogil
