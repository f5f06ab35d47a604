"""What goes out to the guest: a queue of ready frames, and a batch of segments gathered from flows' rings."""

from libc.stdint cimport uint8_t

from worker.core cimport Core


cdef int out_init(Core* core) noexcept nogil
cdef void out_close(Core* core) noexcept nogil
cdef uint8_t* out_reserve(Core* core, size_t frame_len) noexcept nogil
cdef void out_commit(Core* core, size_t frame_len) noexcept nogil
cdef bint out_frame(Core* core, const uint8_t* frame, size_t length) noexcept nogil
cdef size_t out_fifo_room(const Core* core) noexcept nogil
cdef bint out_batch_full(const Core* core) noexcept nogil
cdef uint8_t* out_slot(Core* core) noexcept nogil
cdef void out_push(Core* core, const uint8_t* data, size_t length) noexcept nogil
cdef void out_finish_frame(Core* core, uint8_t* frame, size_t header_len, size_t payload_len) noexcept nogil
cdef void put_prefix(const Core* core, uint8_t* p, size_t frame_len) noexcept nogil
cdef void out_add(Core* core, const uint8_t* data, size_t length) noexcept nogil
cdef void out_watch(Core* core, bint on) noexcept nogil
cdef bint out_pending(const Core* core) noexcept nogil
# for the kinds of link
cdef void out_take_fifo(Core* core) noexcept nogil
cdef int out_block(Core* core) noexcept nogil
cdef void out_batch_sent(Core* core) noexcept nogil
