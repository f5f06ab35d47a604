"""IGMP messages, as far as they are counted: their types (RFC 1112, RFC 2236 section 2.1, RFC 3376 section 4)."""

cdef enum:
    IPPROTO_IGMP_ = 2
    IGMP_HEADER_LEN = 8
    IGMP_MEMBERSHIP_QUERY = 0x11
    IGMP_V1_REPORT = 0x12
    IGMP_V2_REPORT = 0x16
    IGMP_LEAVE_GROUP = 0x17
    IGMP_V3_REPORT = 0x22
