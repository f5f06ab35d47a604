# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A timing wheel (Varghese and Lauck, scheme 6).

`wheel_arm` costs nothing when the deadline moved later, as a retransmission timer's does with every acknowledgment:
the timer stays where it is, and when its slot comes up its owner looks at the true deadline and arms it again. A
deadline beyond the wheel waits in the last slot for another turn.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from worker.lists cimport Node, is_linked, list_append, list_empty, list_init, list_remove, node_init

__all__ = ["TimerWheel"]

cdef enum:
    COARSE_FROM = 1024  # slots: 8 s
    COARSE_STEP = 128  # slots: 1 s


cdef void wheel_init(Wheel* wheel, int64_t now) noexcept nogil:
    cdef int i
    for i in range(WHEEL_SLOTS):
        list_init(&wheel.slots[i])
    for i in range(WHEEL_WORDS):
        wheel.used[i] = 0
    wheel.tick = now >> WHEEL_SHIFT


cdef void wheel_disarm(Timer* timer) noexcept nogil:
    list_remove(&timer.node)


cdef void wheel_arm(Wheel* wheel, Timer* timer, int64_t at) noexcept nogil:
    """See that the timer comes up at `at` (us), or before; one 8 s away or more, up to 1 s later. 0: never."""
    cdef int64_t tick = (at >> WHEEL_SHIFT) + 1
    cdef int slot
    if at == 0:
        return
    if tick <= wheel.tick:
        tick = wheel.tick + 1
    elif tick - wheel.tick >= COARSE_FROM:
        # far deadlines share slots a second apart: many idle flows wake the worker once a second, not 122 times
        tick = (tick + COARSE_STEP - 1) & ~<int64_t>(COARSE_STEP - 1)
        if tick >= wheel.tick + WHEEL_SLOTS:
            tick = (wheel.tick + WHEEL_SLOTS - 1) & ~<int64_t>(COARSE_STEP - 1)
    if is_linked(&timer.node):
        if timer.tick <= tick:
            return
        list_remove(&timer.node)
    timer.tick = tick
    slot = <int>(tick & (WHEEL_SLOTS - 1))
    list_append(&wheel.slots[slot], &timer.node)
    wheel.used[slot >> 6] |= (<uint64_t>1) << (slot & 63)


cdef Timer* wheel_expired(Wheel* wheel, int64_t now) noexcept nogil:
    """Take out the next timer whose slot has passed; NULL: none is left."""
    cdef int64_t until = now >> WHEEL_SHIFT
    cdef int slot
    cdef Node* node
    while wheel.tick <= until:
        slot = <int>(wheel.tick & (WHEEL_SLOTS - 1))
        if wheel.used[slot >> 6] == 0:
            wheel.tick = (wheel.tick | 63) + 1  # 64 empty slots at a step
            if wheel.tick > until:
                wheel.tick = until + 1
            continue
        if not list_empty(&wheel.slots[slot]):
            node = wheel.slots[slot].next
            list_remove(node)
            return <Timer*>node.owner
        wheel.used[slot >> 6] &= ~((<uint64_t>1) << (slot & 63))
        wheel.tick += 1
    return NULL


cdef int64_t wheel_next(const Wheel* wheel) noexcept nogil:
    """When the next used slot comes up (us); 0: the wheel is empty. May be early, never late."""
    cdef int64_t tick = wheel.tick
    cdef int slot
    cdef int _
    cdef uint64_t word
    for _ in range(WHEEL_WORDS + 1):
        slot = <int>(tick & (WHEEL_SLOTS - 1))
        word = wheel.used[slot >> 6] >> (slot & 63)
        if word:
            while not word & 1:
                word >>= 1
                tick += 1
            return tick << WHEEL_SHIFT
        tick = (tick | 63) + 1
    return 0


@cython.final
cdef class TimerWheel:
    cdef Wheel* wheel
    cdef Timer* timers
    cdef int count

    def __cinit__(self, int count, int64_t now):
        cdef int i
        self.count = count
        self.wheel = <Wheel*>calloc(1, sizeof(Wheel))
        self.timers = <Timer*>calloc(count, sizeof(Timer))
        if self.wheel == NULL or self.timers == NULL:
            raise MemoryError
        wheel_init(self.wheel, now)
        for i in range(count):
            node_init(&self.timers[i].node, &self.timers[i])

    def __dealloc__(self):
        free(self.wheel)
        free(self.timers)

    cdef Timer* _timer(self, int which) except NULL:
        if not 0 <= which < self.count:
            raise IndexError(which)
        return &self.timers[which]

    def arm(self, int which, int64_t at):
        wheel_arm(self.wheel, self._timer(which), at)

    def disarm(self, int which):
        wheel_disarm(self._timer(which))

    def expired(self, int64_t now):
        cdef Timer* timer = wheel_expired(self.wheel, now)
        cdef list result = []
        while timer != NULL:
            result.append(timer - self.timers)
            timer = wheel_expired(self.wheel, now)
        return result

    def next(self):
        return wheel_next(self.wheel)
