"""The options of the segments we send (RFC 9293 section 3.2, RFC 7323, RFC 2018 section 3)."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from worker.tcp.receiver cimport sack_blocks
from worker.tcp.tcb cimport RCV_WSCALE, SYN_SENT, OutSegment, Tcb, ts_clock
from worker.wire._cursor cimport store_u16, store_u32
from worker.wire.tcp cimport TCP_SYN, SeqRange, put_option_sack, put_option_ts

cdef enum:
    SACK_BLOCKS = 3  # as many as fit beside a timestamp


cdef inline size_t put_syn_options(const Tcb* t, uint32_t mss, int64_t now, uint8_t* p) noexcept nogil:
    """MSS, and what the guest offered (in our own SYN: everything)."""
    cdef bint ours = t.state == SYN_SENT
    cdef size_t n = 4
    p[0] = 2
    p[1] = 4
    store_u16(p + 2, mss)
    if ours or t.sack_ok:
        store_u32(p + n, 0x01010402)
        n += 4
    if ours or t.ts_ok:
        n += put_option_ts(p + n, ts_clock(t, now), t.ts_recent)
    if ours or t.rcv_wscale:
        store_u32(p + n, 0x01030300 | RCV_WSCALE)
        n += 4
    return n


cdef inline size_t put_options(
    const Tcb* t, const OutSegment* segment, uint32_t mss, int64_t now, uint8_t* p
) noexcept nogil:
    """Write the segment's options, at most 40 bytes; how many. `mss` is what the MTU allows."""
    cdef SeqRange blocks[SACK_BLOCKS]
    cdef size_t n = 0
    if segment.flags & TCP_SYN:
        return put_syn_options(t, mss, now, p)
    if t.ts_ok:
        n = put_option_ts(p, ts_clock(t, now), t.ts_recent)
    if t.sack_ok and t.ooo_count and segment.length == 0:
        n += put_option_sack(p + n, blocks, sack_blocks(t, blocks, SACK_BLOCKS))
    return n
