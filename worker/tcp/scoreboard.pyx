# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""The sender's scoreboard of selective acknowledgments (RFC 2018, RFC 6675).

A sorted array of disjoint ranges, made when the first SACK block comes. A byte counts as lost when three ranges or
more than two segments' worth of bytes above it have been acknowledged (RFC 6675 `IsLost`), or after a timeout.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport malloc

from worker.tcp.tcb cimport CA_LOSS, CA_OPEN, DUP_THRESHOLD, MAX_SACKED
from worker.wire.seqnum cimport seq_diff, seq_ge, seq_gt, seq_le, seq_lt, seq_max, seq_min


cdef int range_insert(SeqRange* ranges, int* count, int limit, uint32_t start, uint32_t end) noexcept nogil:
    """Put [start, end) into a sorted array of disjoint ranges, merging neighbours; its index, or -1: full."""
    cdef int first = 0
    cdef int last
    cdef int i
    while first < count[0] and seq_lt(ranges[first].end, start):
        first += 1
    last = first
    while last < count[0] and seq_le(ranges[last].start, end):
        start = seq_min(start, ranges[last].start)
        end = seq_max(end, ranges[last].end)
        last += 1
    if last == first:
        if count[0] == limit:
            return -1
        for i in range(count[0], first, -1):
            ranges[i] = ranges[i - 1]
        count[0] += 1
    elif last > first + 1:
        for i in range(last, count[0]):
            ranges[i - (last - first - 1)] = ranges[i]
        count[0] -= last - first - 1
    ranges[first].start = start
    ranges[first].end = end
    return first


cdef bint sack_update(Tcb* t, const TcpView* s) noexcept nogil:
    """Take in the blocks of a segment; True: some told of bytes not known before."""
    cdef int i
    cdef int k
    cdef bint news = False
    cdef uint32_t start
    cdef uint32_t end
    for i in range(s.sack_count):
        start = s.sack[i].start
        end = s.sack[i].end
        if seq_ge(start, end) or seq_lt(start, seq_max(t.snd_una, s.ack)) or seq_gt(end, t.snd_nxt):
            continue  # a D-SACK (RFC 2883), or nonsense
        if t.sacked == NULL:
            t.sacked = <SeqRange*>malloc(MAX_SACKED * sizeof(SeqRange))
            if t.sacked == NULL:
                return False
        for k in range(t.sacked_count):
            if seq_le(t.sacked[k].start, start) and seq_le(end, t.sacked[k].end):
                break
        else:
            news = range_insert(t.sacked, &t.sacked_count, MAX_SACKED, start, end) >= 0 or news
    return news


cdef bint is_dsack(const TcpView* s) noexcept nogil:
    """Whether the first block of a segment that has any tells of bytes the guest had twice (RFC 2883 section 4)."""
    return seq_le(s.sack[0].end, s.ack) or (
        s.sack_count > 1 and seq_le(s.sack[1].start, s.sack[0].start) and seq_le(s.sack[0].end, s.sack[1].end)
    )


cdef void sack_prune(Tcb* t) noexcept nogil:
    """Forget what the cumulative acknowledgment has passed."""
    cdef int gone = 0
    cdef int i
    while gone < t.sacked_count and seq_le(t.sacked[gone].end, t.snd_una):
        gone += 1
    if gone:
        for i in range(gone, t.sacked_count):
            t.sacked[i - gone] = t.sacked[i]
        t.sacked_count -= gone
    if t.sacked_count and seq_lt(t.sacked[0].start, t.snd_una):
        t.sacked[0].start = t.snd_una


cdef uint32_t lost_edge(const Tcb* t) noexcept nogil:
    """Bytes below this that are not acknowledged count as lost."""
    cdef uint32_t above = 0
    cdef int i
    if t.ca_state == CA_LOSS:
        return t.recover
    for i in range(t.sacked_count - 1, -1, -1):
        above += t.sacked[i].end - t.sacked[i].start
        if t.sacked_count - i >= DUP_THRESHOLD or above > (DUP_THRESHOLD - 1) * <uint32_t>t.mss:
            return t.sacked[i].start
    return t.snd_una


cdef uint32_t pipe(const Tcb* t) noexcept nogil:
    """An estimate of the bytes in the network (RFC 6675 section 4)."""
    cdef uint32_t outstanding = t.snd_nxt - t.snd_una
    cdef uint32_t edge
    cdef uint32_t at
    cdef uint32_t waiting
    cdef int i
    if t.ca_state == CA_OPEN:
        return outstanding
    edge = lost_edge(t)
    at = seq_max(t.high_rxt, t.snd_una)
    waiting = edge - at if seq_gt(edge, at) else 0
    for i in range(t.sacked_count):
        outstanding -= t.sacked[i].end - t.sacked[i].start
        if waiting and seq_gt(t.sacked[i].end, at) and seq_lt(t.sacked[i].start, edge):
            waiting -= <uint32_t>seq_diff(seq_min(t.sacked[i].end, edge), seq_max(t.sacked[i].start, at))
    return outstanding - waiting if outstanding > waiting else 0


cdef bint next_hole(const Tcb* t, bint any_hole, uint32_t* start, uint32_t* end) noexcept nogil:
    """The next bytes to retransmit, [start, end); False: none (RFC 6675 `NextSeg` rule 1, and the first segment).

    `any_hole`: also bytes that do not count as lost, below others that arrived (rule 3).
    """
    cdef uint32_t at = seq_max(t.high_rxt, t.snd_una)
    cdef uint32_t edge = t.sacked[t.sacked_count - 1].start if any_hole and t.sacked_count else lost_edge(t)
    cdef int i
    if t.rexmit_first:
        at = t.snd_una
        edge = seq_max(edge, t.snd_una + t.mss)
    edge = seq_min(edge, t.snd_nxt)
    for i in range(t.sacked_count):
        if seq_lt(at, t.sacked[i].start):
            edge = seq_min(edge, t.sacked[i].start)
            break
        if seq_lt(at, t.sacked[i].end):
            at = t.sacked[i].end
    if seq_ge(at, edge):
        return False
    start[0] = at
    end[0] = edge
    return True
