# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""A timing wheel (Varghese and Lauck, scheme 6).

`wheel_arm` costs nothing when the deadline moved later, as a retransmission timer's does with every acknowledgment:
the timer stays where it is, and when its slot comes up its owner looks at the true deadline and arms it again. A
deadline beyond the wheel waits in the last slot for another turn.
"""

from libc.stdint cimport int64_t, uint64_t

from worker.lists cimport Node, is_linked, list_append, list_empty, list_init, list_remove


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
    """See that the timer comes up at `at` (us) or before; 0: never."""
    cdef int64_t tick = (at >> WHEEL_SHIFT) + 1
    cdef int slot
    if at == 0:
        return
    if tick <= wheel.tick:
        tick = wheel.tick + 1
    elif tick >= wheel.tick + WHEEL_SLOTS:
        tick = wheel.tick + WHEEL_SLOTS - 1
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
