"""The header in front of each frame of a tap device with offloads: virtio's (VIRTIO 1.2 section 5.1.6,
linux/virtio_net.h), in the machine's byte order, without `num_buffers`.

Fields a frame does not need are not looked at: lengths and offsets of the guest's are never trusted.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

cdef enum:
    VNET_HEADER_LEN = 10
    VNET_NEEDS_CSUM = 1  # the transport's checksum holds the sum of its pseudo-header alone
    VNET_DATA_VALID = 2  # it was looked at already
    VNET_GSO_NONE = 0
    VNET_GSO_TCPV4 = 1  # several TCP segments in one packet, to be cut


cdef inline void put_vnet_plain(uint8_t* p) noexcept nogil:
    """For a frame as it goes over a wire."""
    memset(p, 0, VNET_HEADER_LEN)


cdef inline void put_vnet_offload(
    uint8_t* p, uint8_t gso_type, uint16_t headers_len, uint16_t gso_size, uint16_t csum_start, uint16_t csum_offset
) noexcept nogil:
    """For a frame whose checksum is to be filled in, `csum_offset` behind `csum_start`, and that may have to be cut
    into segments with `gso_size` bytes of payload each."""
    p[0] = VNET_NEEDS_CSUM
    p[1] = gso_type
    memcpy(p + 2, &headers_len, 2)
    memcpy(p + 4, &gso_size, 2)
    memcpy(p + 6, &csum_start, 2)
    memcpy(p + 8, &csum_offset, 2)
