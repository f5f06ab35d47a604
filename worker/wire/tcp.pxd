"""TCP headers and options (RFC 9293 section 3.1, RFC 7323 sections 2 and 3, RFC 2018 sections 2 and 3)."""

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from worker.wire._cursor cimport Cursor, has, load_u16, load_u32, store_u16, store_u32

cdef enum:
    TCP_HEADER_LEN = 20
    TCP_MAX_HEADER_LEN = 60
    TCP_FIN = 1
    TCP_SYN = 2
    TCP_RST = 4
    TCP_PSH = 8
    TCP_ACK = 16
    TCP_MAX_SACK_BLOCKS = 4
    TCP_DEFAULT_MSS = 536  # RFC 9293 section 3.7.1
    TCP_MAX_WSCALE = 14  # RFC 7323 section 2.3


cdef struct SeqRange:
    uint32_t start
    uint32_t end


cdef struct TcpView:
    uint16_t sport
    uint16_t dport
    uint32_t seq
    uint32_t ack
    uint8_t flags
    uint32_t window
    const uint8_t* payload
    uint32_t length
    bint has_ts
    uint32_t ts_val
    uint32_t ts_ecr
    uint16_t mss
    int8_t wscale
    bint sack_permitted
    int sack_count
    SeqRange sack[TCP_MAX_SACK_BLOCKS]


cdef inline void parse_tcp_options(const uint8_t* p, size_t length, TcpView* out) noexcept nogil:
    """Read the options that are understood; one that runs over the end stops the reading."""
    cdef size_t i = 0
    cdef size_t n
    cdef size_t k
    cdef uint8_t kind
    if length == 12 and load_u32(p) == 0x0101080a:
        out.has_ts = True
        out.ts_val = load_u32(p + 4)
        out.ts_ecr = load_u32(p + 8)
        return
    while i < length:
        kind = p[i]
        if kind == 0:
            return
        if kind == 1:
            i += 1
            continue
        if length - i < 2:
            return
        n = p[i + 1]
        if n < 2 or n > length - i:
            return
        if kind == 2 and n == 4:
            out.mss = load_u16(p + i + 2)
        elif kind == 3 and n == 3:
            out.wscale = <int8_t>(p[i + 2] if p[i + 2] < TCP_MAX_WSCALE else TCP_MAX_WSCALE)
        elif kind == 4 and n == 2:
            out.sack_permitted = True
        elif kind == 8 and n == 10:
            out.has_ts = True
            out.ts_val = load_u32(p + i + 2)
            out.ts_ecr = load_u32(p + i + 6)
        elif kind == 5:
            k = i + 2
            while k + 8 <= i + n and out.sack_count < TCP_MAX_SACK_BLOCKS:
                out.sack[out.sack_count].start = load_u32(p + k)
                out.sack[out.sack_count].end = load_u32(p + k + 4)
                out.sack_count += 1
                k += 8
        i += n


cdef inline bint parse_tcp(const Cursor* c, TcpView* out) noexcept nogil:
    """Check header and options against the bytes at hand (the checksum is the caller's); False: malformed."""
    cdef const uint8_t* p = c.pos
    cdef size_t header_len
    if not has(c, TCP_HEADER_LEN):
        return False
    header_len = (p[12] >> 4) * 4
    if header_len < TCP_HEADER_LEN or not has(c, header_len):
        return False
    out.sport = load_u16(p)
    out.dport = load_u16(p + 2)
    out.seq = load_u32(p + 4)
    out.ack = load_u32(p + 8)
    out.flags = p[13] & 0x1f
    out.window = load_u16(p + 14)
    out.payload = p + header_len
    out.length = <uint32_t>(c.left - header_len)
    out.has_ts = False
    out.mss = 0
    out.wscale = -1
    out.sack_permitted = False
    out.sack_count = 0
    if header_len > TCP_HEADER_LEN:
        parse_tcp_options(p + TCP_HEADER_LEN, header_len - TCP_HEADER_LEN, out)
    return True


cdef inline void put_tcp(
    uint8_t* p, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack, size_t header_len, unsigned int flags,
    uint32_t window
) noexcept nogil:
    """Write the fixed header with a zero checksum; options are the caller's."""
    store_u16(p, sport)
    store_u16(p + 2, dport)
    store_u32(p + 4, seq)
    store_u32(p + 8, ack)
    p[12] = <uint8_t>((header_len >> 2) << 4)
    p[13] = <uint8_t>flags
    store_u16(p + 14, window)
    store_u32(p + 16, 0)


cdef inline size_t put_option_ts(uint8_t* p, uint32_t value, uint32_t echo) noexcept nogil:
    store_u32(p, 0x0101080a)
    store_u32(p + 4, value)
    store_u32(p + 8, echo)
    return 12


cdef inline size_t put_option_sack(uint8_t* p, const SeqRange* blocks, int count) noexcept nogil:
    cdef int i
    store_u16(p, 0x0101)
    p[2] = 5
    p[3] = <uint8_t>(2 + 8 * count)
    for i in range(count):
        store_u32(p + 4 + 8 * i, blocks[i].start)
        store_u32(p + 8 + 8 * i, blocks[i].end)
    return 4 + 8 * count
