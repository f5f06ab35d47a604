# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""The link, whichever kind it is: each kind receives and sends in a module of its own."""

from worker.core cimport LINK_MESSAGES, LINK_TAP
from worker.link.messages cimport messages_close, messages_init, messages_receive, messages_send
from worker.link.output cimport out_take_fifo
from worker.link.stream cimport stream_receive, stream_send
from worker.link.tap cimport tap_receive, tap_send


cdef int link_init(Core* core) noexcept nogil:
    """What the kind needs besides the receive buffer; 0, or -1: no memory."""
    return messages_init(core) if core.link_kind == LINK_MESSAGES else 0


cdef void link_close(Core* core) noexcept nogil:
    messages_close(core)


cdef int link_receive(Core* core, unsigned int* detail) noexcept nogil:
    """Read once and handle every whole frame; a `LinkResult`. `detail`: the errno, or the impossible length."""
    if core.link_kind == LINK_MESSAGES:
        return messages_receive(core, detail)
    if core.link_kind == LINK_TAP:
        return tap_receive(core, detail)
    return stream_receive(core, detail)


cdef int send_batch(Core* core) noexcept nogil:
    if core.link_kind == LINK_MESSAGES:
        return messages_send(core)
    return tap_send(core) if core.link_kind == LINK_TAP else stream_send(core)


cdef int link_flush(Core* core) noexcept nogil:
    """Send what waits, as far as the link takes it; 0, 1: the link is full, or a negative errno: it is broken."""
    cdef int result = 0
    if core.out.count:
        result = send_batch(core)
    while result == 0 and core.out.fifo_end != core.out.fifo_taken:
        out_take_fifo(core)
        result = send_batch(core)
    return result
