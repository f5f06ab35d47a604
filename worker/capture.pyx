# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Copies of a VM's frames, both ways, as pcapng blocks for whoever captures them (draft-ietf-opsawg-pcapng, 4.3).

Each capture has a descriptor to write to, whose reader has been given the section's and the interface's header already.
Blocks are gathered in a buffer of the capture's own and leave in one write at the end of the engine's turn. A reader
that does not keep up loses frames, never the guest: what finds no room is counted, and the next block says how many are
missing before it. A reader that hangs up ends its capture, and so does a descriptor that cannot be written to any more.

The buffer may be a mapping of a file that outlives this process. Whoever has it knows, whatever this process was doing
when it was killed, which bytes are still to be written to complete the block that the reader has a part of; but for the
moment between a write and the note of how much it took, which is marked. The note is only written: after the beginning
nothing here believes it, as nobody knows what else a process of a hostile guest has left running.

A frame is taken where it crosses the link: before anything looks at it, or when it is queued for the guest, so that an
offloaded segment is one long frame, with the checksum that nobody computed.
"""

from libc.errno cimport EAGAIN, EBADMSG, EINTR, EPERM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.uio cimport iovec
from posix.unistd cimport close, write

from worker.core cimport CAPTURE_ROOM, MAX_FRAME, TAG_CAPTURE, CaptureBuffer, count, token_of
from worker.counters cimport C_CAPTURE_DROPPED, C_CAPTURE_FRAMES
from worker.readiness cimport READY_EDGE, READY_OUT, ready_add, ready_rearm, ready_remove

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* out)
    enum:
        CLOCK_REALTIME

cdef extern from *:
    """
    /* For whoever finds the memory after this process was killed, not for another processor. */
    #define moorage_keep_order() __atomic_signal_fence(__ATOMIC_SEQ_CST)
    """
    void moorage_keep_order() noexcept nogil

cdef enum:
    ENHANCED_PACKET_BLOCK = 6
    OPTION_FLAGS = 2  # epb_flags
    OPTION_DROP_COUNT = 4  # epb_dropcount
    HEADER_LEN = 28
    OPTIONS_LEN = 8 + 12 + 4  # flags, number of lost frames, end of options
    TRAILER_LEN = 4


cdef void close_buffer(Capture* capture) noexcept nogil:
    if capture.is_shared:
        munmap(capture.buffer, sizeof(CaptureBuffer))
    else:
        free(capture.buffer)


cdef int open_buffer(Capture* capture, int fd) noexcept nogil:
    """Map the file, of the size of a `CaptureBuffer`, or without one (-1) allocate; 0, or an errno."""
    cdef CaptureBuffer* buffer
    if fd < 0:
        capture.buffer = <CaptureBuffer*>calloc(1, sizeof(CaptureBuffer))
        return 0 if capture.buffer != NULL else errno
    buffer = <CaptureBuffer*>mmap(NULL, sizeof(CaptureBuffer), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if <void*>buffer == MAP_FAILED:
        return errno
    capture.buffer = buffer
    capture.is_shared = True
    capture.start = buffer.start
    capture.end = buffer.end
    capture.dropped = buffer.dropped
    if buffer.writing or capture.start > capture.end or capture.end > CAPTURE_ROOM:
        close_buffer(capture)
        return EBADMSG
    return 0


cdef int capture_add(Core* core, int fd, uint32_t interface, uint32_t snaplen, int buffer_fd) noexcept nogil:
    """Capture to a non-blocking descriptor from now on; both are the engine's then. 0, or an errno."""
    cdef Capture* capture = <Capture*>calloc(1, sizeof(Capture))
    cdef int error
    if capture == NULL:
        return errno
    error = open_buffer(capture, buffer_fd)
    if error:
        free(capture)
        return error
    error = ready_add(&core.ready, fd, token_of(TAG_CAPTURE, capture), READY_OUT | READY_EDGE)
    if error and error != EPERM:  # a file, which is always ready
        close_buffer(capture)
        free(capture)
        return error
    capture.is_watched = error == 0
    capture.fd = fd
    capture.interface = interface
    capture.snaplen = snaplen if 0 < snaplen < MAX_FRAME else MAX_FRAME
    capture.next = core.captures
    core.captures = capture
    if buffer_fd >= 0:
        close(buffer_fd)  # the mapping is enough
    return 0


cdef void end(Core* core, Capture* capture) noexcept nogil:
    if capture.is_watched:
        ready_remove(&core.ready, capture.fd)
    close(capture.fd)
    close_buffer(capture)
    free(capture)


cdef void capture_close_all(Core* core) noexcept nogil:
    """Write what can be written, and end every capture."""
    cdef Capture* capture
    capture_flush(core)
    while core.captures != NULL:
        capture = core.captures
        core.captures = capture.next
        end(core, capture)


cdef void begin_write(Capture* capture) noexcept nogil:
    """From now on the header is no longer true."""
    capture.buffer.writing = 1
    moorage_keep_order()


cdef void end_write(Capture* capture) noexcept nogil:
    """It is again, once it says what the capture knows."""
    capture.buffer.start = capture.start
    capture.buffer.end = capture.end
    moorage_keep_order()
    capture.buffer.writing = 0


cdef bint drain(Core* core, Capture* capture) noexcept nogil:
    """Write what waits, as far as it goes; False: nobody takes it any more."""
    cdef ssize_t n
    while capture.start != capture.end and not capture.blocked:
        begin_write(capture)
        n = write(capture.fd, capture.buffer.data + capture.start, capture.end - capture.start)
        if n > 0:
            capture.start += n
        if capture.start == capture.end:
            capture.start = 0
            capture.end = 0
        end_write(capture)
        if n >= 0 or errno == EINTR:
            continue
        if errno != EAGAIN:
            return False
        capture.blocked = True
        ready_rearm(&core.ready, capture.fd, READY_OUT)
    return True


cdef void capture_flush(Core* core) noexcept nogil:
    """The end of a turn: hand on what was captured in it."""
    cdef Capture** place = &core.captures
    cdef Capture* capture
    while place[0] != NULL:
        capture = place[0]
        if drain(core, capture) and not capture.hung_up:
            place = &capture.next
        else:
            place[0] = capture.next
            end(core, capture)


cdef bint make_room(Core* core, Capture* capture, size_t length) noexcept nogil:
    """Whether a block of that length fits now."""
    if length <= CAPTURE_ROOM - capture.end:
        return True
    drain(core, capture)  # a reader that is gone is found so again at the end of the turn
    if capture.start:
        begin_write(capture)
        memmove(capture.buffer.data, capture.buffer.data + capture.start, capture.end - capture.start)
        capture.end -= capture.start
        capture.start = 0
        end_write(capture)
    return length <= CAPTURE_ROOM - capture.end


cdef inline uint8_t* put(uint8_t* p, uint32_t value) noexcept nogil:
    """In the byte order of the machine, as the section's header says."""
    memcpy(p, &value, 4)
    return p + 4


cdef uint8_t* put_option(uint8_t* p, uint32_t code, uint32_t length) noexcept nogil:
    cdef unsigned short head[2]
    head[0] = <unsigned short>code
    head[1] = <unsigned short>length
    memcpy(p, head, 4)
    return p + 4


cdef void add_block(
    Core* core, Capture* capture, uint32_t direction, const iovec* pieces, int n, size_t length, uint64_t at
) noexcept nogil:
    cdef size_t taken = length if length < capture.snaplen else capture.snaplen
    cdef size_t padded = (taken + 3) & ~<size_t>3
    cdef uint32_t total = <uint32_t>(HEADER_LEN + padded + OPTIONS_LEN + TRAILER_LEN)
    cdef size_t left = taken
    cdef size_t part
    cdef uint8_t* p
    cdef int i
    if not make_room(core, capture, total):
        capture.dropped += 1
        capture.buffer.dropped = capture.dropped
        count(core, C_CAPTURE_DROPPED)
        return
    p = capture.buffer.data + capture.end
    p = put(put(put(p, ENHANCED_PACKET_BLOCK), total), capture.interface)
    p = put(put(p, <uint32_t>(at >> 32)), <uint32_t>at)
    p = put(put(p, <uint32_t>taken), <uint32_t>length)
    for i in range(n):
        part = pieces[i].iov_len if pieces[i].iov_len < left else left
        memcpy(p, pieces[i].iov_base, part)
        p += part
        left -= part
    memset(p, 0, padded - taken)
    p = put(put_option(p + (padded - taken), OPTION_FLAGS, 4), direction)
    p = put_option(p, OPTION_DROP_COUNT, 8)
    memcpy(p, &capture.dropped, 8)
    put(put(p + 8, 0), total)
    capture.end += total
    capture.dropped = 0
    moorage_keep_order()
    capture.buffer.end = capture.end
    capture.buffer.dropped = 0
    count(core, C_CAPTURE_FRAMES)


cdef void add_blocks(Core* core, uint32_t direction, const iovec* pieces, int n) noexcept nogil:
    """One frame, in pieces, to every capture."""
    cdef Capture* capture = core.captures
    cdef size_t length = 0
    cdef timespec t
    cdef int i
    for i in range(n):
        length += pieces[i].iov_len
    clock_gettime(CLOCK_REALTIME, &t)
    while capture != NULL:
        add_block(
            core, capture, direction, pieces, n, length, <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec
        )
        capture = capture.next


cdef void capture_whole(Core* core, uint32_t direction, const uint8_t* frame, size_t length) noexcept nogil:
    cdef iovec piece
    piece.iov_base = <void*>frame
    piece.iov_len = length
    add_blocks(core, direction, &piece, 1)


cdef void capture_last_of_batch(Core* core) noexcept nogil:
    """The frame whose pieces were pushed to the batch last; what the link wants before it is left out."""
    cdef iovec pieces[3]
    cdef int first = core.out.first_piece[core.out.frame_count - 1]
    cdef int n = core.out.count - first
    memcpy(pieces, core.out.iov + first, n * sizeof(iovec))
    pieces[0].iov_base = <uint8_t*>pieces[0].iov_base + core.prefix_len
    pieces[0].iov_len -= core.prefix_len
    add_blocks(core, TO_GUEST, pieces, n)
