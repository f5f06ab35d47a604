# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Which descriptors are ready: epoll on Linux, poll elsewhere (and on Linux in the tests).

The engine's own descriptors are edge-triggered: one registration for a flow's life, no system call when interest
changes. With poll that is played by no longer asking for what has been reported until `ready_rearm`.
"""

from libc.errno cimport EBADF, ENOENT, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from posix.unistd cimport close

cdef extern from "<poll.h>" nogil:
    int poll(pollfd* fds, unsigned long count, int timeout)
    enum:
        POLLIN
        POLLOUT
        POLLERR
        POLLHUP

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/epoll.h>
    #define MOORAGE_HAVE_EPOLL 1
    #else
    /* Never called: ready_init falls back to poll where there is no epoll. */
    #define MOORAGE_HAVE_EPOLL 0
    #include <stdint.h>
    typedef union { uint64_t u64; } epoll_data_t;
    struct epoll_event { uint32_t events; epoll_data_t data; };
    #define EPOLLIN 1
    #define EPOLLOUT 4
    #define EPOLLERR 8
    #define EPOLLHUP 16
    #define EPOLLRDHUP 0x2000
    #define EPOLLET (1u << 31)
    #define EPOLL_CTL_ADD 1
    #define EPOLL_CTL_DEL 2
    #define EPOLL_CTL_MOD 3
    #define EPOLL_CLOEXEC 0
    static int epoll_create1(int f) { return -1; }
    static int epoll_ctl(int e, int o, int f, struct epoll_event *v) { return -1; }
    static int epoll_wait(int e, struct epoll_event *v, int n, int t) { return -1; }
    #endif
    """
    enum:
        MOORAGE_HAVE_EPOLL
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
        EPOLL_CLOEXEC
    const uint32_t EPOLLET
    union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event) nogil
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout) nogil


cdef int ready_init(Readiness* r, bint use_epoll) noexcept nogil:
    """An empty set; 0, or an errno."""
    r.epoll_fd = -1
    r.fds = NULL
    r.tokens = NULL
    r.modes = NULL
    r.slot_of = NULL
    r.slot_count = 0
    r.count = 0
    r.capacity = 0
    if use_epoll and MOORAGE_HAVE_EPOLL:
        r.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if r.epoll_fd < 0:
            return errno
    return 0


cdef void ready_close(Readiness* r) noexcept nogil:
    if r.epoll_fd >= 0:
        close(r.epoll_fd)
    free(r.fds)
    free(r.tokens)
    free(r.modes)
    free(r.slot_of)
    ready_init(r, False)


cdef uint32_t epoll_mask(uint32_t events) noexcept nogil:
    cdef uint32_t mask = 0
    if events & READY_IN:
        mask |= EPOLLIN
    if events & READY_OUT:
        mask |= EPOLLOUT
    if events & READY_EDGE:
        mask |= EPOLLET | EPOLLRDHUP
    return mask


cdef short poll_mask(uint32_t events) noexcept nogil:
    return <short>((POLLIN if events & READY_IN else 0) | (POLLOUT if events & READY_OUT else 0))


cdef int epoll_do(Readiness* r, int op, int fd, uint64_t token, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = epoll_mask(events)
    event.data.u64 = token
    return 0 if epoll_ctl(r.epoll_fd, op, fd, &event) == 0 else errno


cdef bint grow(Readiness* r, int fd) noexcept nogil:
    cdef int slots
    cdef int i
    cdef void* p
    if fd >= r.slot_count:
        slots = fd + 64
        p = realloc(r.slot_of, slots * sizeof(int))
        if p == NULL:
            return False
        r.slot_of = <int*>p
        for i in range(r.slot_count, slots):
            r.slot_of[i] = -1
        r.slot_count = slots
    if r.count == r.capacity:
        slots = r.capacity * 2 + 64
        p = realloc(r.fds, slots * sizeof(pollfd))
        if p == NULL:
            return False
        r.fds = <pollfd*>p
        p = realloc(r.tokens, slots * sizeof(uint64_t))
        if p == NULL:
            return False
        r.tokens = <uint64_t*>p
        p = realloc(r.modes, slots * sizeof(uint32_t))
        if p == NULL:
            return False
        r.modes = <uint32_t*>p
        r.capacity = slots
    return True


cdef int ready_add(Readiness* r, int fd, uint64_t token, uint32_t events) noexcept nogil:
    """Watch a descriptor; 0, or an errno."""
    cdef int slot
    if fd < 0:
        return EBADF
    if r.epoll_fd >= 0:
        return epoll_do(r, EPOLL_CTL_ADD, fd, token, events)
    if not grow(r, fd):
        return ENOMEM
    slot = r.count
    r.count += 1
    r.slot_of[fd] = slot
    r.fds[slot].fd = fd
    r.fds[slot].events = poll_mask(events)
    r.fds[slot].revents = 0
    r.tokens[slot] = token
    r.modes[slot] = events
    return 0


cdef int ready_modify(Readiness* r, int fd, uint64_t token, uint32_t events) noexcept nogil:
    """Watch for other events; 0, or an errno."""
    cdef int slot
    if r.epoll_fd >= 0:
        return epoll_do(r, EPOLL_CTL_MOD, fd, token, events)
    slot = r.slot_of[fd] if fd < r.slot_count else -1
    if slot < 0:
        return ENOENT
    r.fds[slot].fd = fd
    r.fds[slot].events = poll_mask(events)
    r.tokens[slot] = token
    r.modes[slot] = events
    return 0


cdef void ready_remove(Readiness* r, int fd) noexcept nogil:
    """Forget a descriptor, which must still be open."""
    cdef int slot
    cdef int last
    if r.epoll_fd >= 0:
        epoll_do(r, EPOLL_CTL_DEL, fd, 0, 0)
        return
    slot = r.slot_of[fd] if fd < r.slot_count else -1
    if slot < 0:
        return
    last = r.count - 1
    r.slot_of[fd] = -1
    if slot != last:
        r.fds[slot] = r.fds[last]
        r.tokens[slot] = r.tokens[last]
        r.modes[slot] = r.modes[last]
        r.slot_of[r.fds[slot].fd if r.fds[slot].fd >= 0 else ~r.fds[slot].fd] = slot
    r.count = last


cdef void poll_rearm(Readiness* r, int fd, uint32_t events) noexcept nogil:
    cdef int slot = r.slot_of[fd] if fd < r.slot_count else -1
    if slot >= 0:
        r.fds[slot].fd = fd
        r.fds[slot].events |= poll_mask(events & r.modes[slot])


cdef int wait_poll(Readiness* r, ReadyEvent* out, int timeout_ms) noexcept nogil:
    cdef int n = poll(r.fds, r.count, timeout_ms)
    cdef int found = 0
    cdef int i
    cdef short seen
    for i in range(r.count if n > 0 else 0):
        seen = r.fds[i].revents
        if seen == 0 or r.fds[i].fd < 0:
            continue
        if found == READY_BATCH:
            break
        out[found].token = r.tokens[i]
        out[found].events = (
            (READY_IN if seen & (POLLIN | POLLHUP) else 0) | (READY_OUT if seen & POLLOUT else 0)
            | (READY_ERR if seen & (POLLERR | POLLHUP) else 0)
        )
        found += 1
        if r.modes[i] & READY_EDGE:
            r.fds[i].events &= ~seen
            if seen & (POLLERR | POLLHUP):
                r.fds[i].fd = ~r.fds[i].fd  # poll reports these unasked: look away until rearmed
    return n if n < 0 else found


cdef int ready_wait(Readiness* r, ReadyEvent* out, int timeout_ms) noexcept nogil:
    """Up to READY_BATCH events into `out`; how many (0 also when a signal came)."""
    cdef epoll_event events[READY_BATCH]
    cdef uint32_t seen
    cdef int n
    cdef int i
    if r.epoll_fd < 0:
        n = wait_poll(r, out, timeout_ms)
        return n if n >= 0 else 0
    n = epoll_wait(r.epoll_fd, events, READY_BATCH, timeout_ms)
    for i in range(n):
        seen = events[i].events
        out[i].token = events[i].data.u64
        out[i].events = (
            (READY_IN if seen & (EPOLLIN | EPOLLHUP | EPOLLRDHUP) else 0) | (READY_OUT if seen & EPOLLOUT else 0)
            | (READY_ERR if seen & (EPOLLERR | EPOLLHUP) else 0) | (READY_RDHUP if seen & EPOLLRDHUP else 0)
        )
    return n if n >= 0 else 0
