"""Which descriptors are ready: epoll where it exists, poll elsewhere."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    READY_IN = 1
    READY_OUT = 2
    READY_ERR = 4  # an error or a hang-up waits
    READY_RDHUP = 8  # the peer has finished sending
    READY_EDGE = 16  # report a change once, until `ready_rearm`
    READY_BATCH = 256


cdef struct ReadyEvent:
    uint64_t token
    uint32_t events


cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents


cdef struct Readiness:
    int epoll_fd  # -1: poll
    pollfd* fds
    uint64_t* tokens
    uint32_t* modes
    int* slot_of
    int slot_count
    int count
    int capacity


cdef int ready_init(Readiness* r, bint use_epoll) noexcept nogil
cdef void ready_close(Readiness* r) noexcept nogil
cdef int ready_add(Readiness* r, int fd, uint64_t token, uint32_t events) noexcept nogil
cdef int ready_modify(Readiness* r, int fd, uint64_t token, uint32_t events) noexcept nogil
cdef void ready_remove(Readiness* r, int fd) noexcept nogil
cdef int ready_wait(Readiness* r, ReadyEvent* out, int timeout_ms) noexcept nogil
cdef void poll_rearm(Readiness* r, int fd, uint32_t events) noexcept nogil


cdef inline void ready_rearm(Readiness* r, int fd, uint32_t events) noexcept nogil:
    """The owner of an edge-triggered descriptor met EAGAIN: tell it again. Free with epoll, which does so itself."""
    if r.epoll_fd < 0:
        poll_rearm(r, fd, events)
