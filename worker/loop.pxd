"""One turn of the engine: wait, take what came, send what there is."""

from libc.stdint cimport int64_t

from worker.core cimport Core
from worker.readiness cimport ReadyEvent


cdef int64_t clock_us() noexcept nogil
cdef int run_until(Core* core, int64_t deadline, ReadyEvent* python_events) noexcept nogil
cdef void handle_injected(Core* core, const unsigned char* frame, size_t length) noexcept nogil
cdef void handle_received(Core* core, const unsigned char* data, size_t length) noexcept nogil
