"""A timing wheel: deadlines are kept by slot, a deadline that moves later is noticed only when its slot comes up."""

from libc.stdint cimport int64_t, uint64_t

from worker.lists cimport Node

cdef enum:
    WHEEL_SLOTS = 4096
    WHEEL_WORDS = 64
    WHEEL_SHIFT = 13  # a slot is 2**13 us: 8 ms, the wheel 34 s


cdef struct Timer:
    Node node
    int64_t tick
    int kind  # of the owner: for the engine to tell flows apart
    void* owner


cdef struct Wheel:
    Node slots[WHEEL_SLOTS]
    uint64_t used[WHEEL_WORDS]
    int64_t tick


cdef void wheel_init(Wheel* wheel, int64_t now) noexcept nogil
cdef void wheel_arm(Wheel* wheel, Timer* timer, int64_t at) noexcept nogil
cdef Timer* wheel_expired(Wheel* wheel, int64_t now) noexcept nogil
cdef int64_t wheel_next(const Wheel* wheel) noexcept nogil

cdef void wheel_disarm(Timer* timer) noexcept nogil
