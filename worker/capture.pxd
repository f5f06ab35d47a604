"""Copies of a VM's frames, both ways, as pcapng blocks for whoever captures them."""

from libc.stdint cimport uint8_t, uint32_t

from worker.core cimport Capture, Core

cdef enum:
    FROM_GUEST = 1  # epb_flags: inbound
    TO_GUEST = 2  # outbound


cdef int capture_add(Core* core, int fd, uint32_t interface, uint32_t snaplen, int buffer_fd) noexcept nogil
cdef void capture_close_all(Core* core) noexcept nogil
cdef void capture_flush(Core* core) noexcept nogil
cdef void capture_whole(Core* core, uint32_t direction, const uint8_t* frame, size_t length) noexcept nogil
cdef void capture_last_of_batch(Core* core) noexcept nogil


cdef inline void capture_frame(Core* core, uint32_t direction, const uint8_t* frame, size_t length) noexcept nogil:
    """All that a frame costs while nobody captures is the look at `captures`."""
    if core.captures != NULL:
        capture_whole(core, direction, frame, length)
