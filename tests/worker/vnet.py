"""The header before a frame of a tap device with offloads (VIRTIO 1.2 section 5.1.6), and what the other side does."""

from __future__ import annotations

import struct

import dpkt

HEADER = struct.Struct("=BBHHHH")
"""Flags, type of segmentation, length of all headers, size of a segment, start and offset of the checksum."""
PLAIN = bytes(HEADER.size)
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_UDP = 0, 1, 3
ETHERNET, IPV4 = 14, 20
PSH, FIN = 8, 1


def frames(message: bytes) -> list[bytes]:
    """The frames that go over a wire for one from the engine: checksums filled in, long segments cut.

    Fails where the header does not fit the frame.
    """
    flags, gso, headers, size, start, offset = HEADER.unpack_from(message)
    frame = message[HEADER.size :]
    if not flags:
        assert message[: HEADER.size] == PLAIN
        return [frame]
    assert (flags, start) == (NEEDS_CSUM, ETHERNET + IPV4)
    protocol = frame[23]
    assert offset == {6: 16, 17: 6}[protocol]
    at = start + offset
    assert frame[at : at + 2] == pseudo_sum(frame).to_bytes(2, "big"), "the sum of the pseudo-header alone"
    if gso == GSO_NONE:
        assert size == 0
        return [filled(frame, offset)]
    assert (gso, protocol) == (GSO_TCPV4, 6)
    assert headers == start + (frame[start + 12] >> 4) * 4
    assert len(frame) - headers > size, "one segment needs no cutting"
    return [filled(piece, offset) for piece in cut(frame, headers, size)]


def cut(frame: bytes, headers: int, size: int) -> list[bytes]:
    """A TCP packet as several, each with up to `size` bytes of payload; their checksums are still to be filled in."""
    payload = frame[headers:]
    pieces = []
    for start in range(0, len(payload), size):
        piece = bytearray(frame[:headers] + payload[start : start + size])
        piece[16:18] = (len(piece) - ETHERNET).to_bytes(2, "big")
        piece[24:26] = bytes(2)
        piece[24:26] = dpkt.in_cksum(bytes(piece[14:34])).to_bytes(2, "big")
        (seq,) = struct.unpack_from("!I", piece, 38)
        struct.pack_into("!I", piece, 38, (seq + start) % 2**32)
        if start + size < len(payload):
            piece[47] &= ~(PSH | FIN)
        pieces.append(bytes(piece))
    return pieces


def pseudo_sum(frame: bytes) -> int:
    """The sum of an IPv4 packet's pseudo-header, not complemented."""
    length = len(frame) - ETHERNET - IPV4
    return 0xFFFF ^ int(dpkt.in_cksum(frame[26:34] + bytes([0, frame[23]]) + length.to_bytes(2, "big")))


def filled(frame: bytes, offset: int) -> bytes:
    """With the transport's checksum, which is `offset` bytes into its header."""
    at = ETHERNET + IPV4 + offset
    blank = frame[:at] + pseudo_sum(frame).to_bytes(2, "big") + frame[at + 2 :]
    checksum: int = dpkt.in_cksum(blank[ETHERNET + IPV4 :])
    return frame[:at] + checksum.to_bytes(2, "big") + frame[at + 2 :]


def partial(frame: bytes, offset: int, gso_size: int = 0) -> bytes:
    """A TCP or UDP frame as a guest's kernel hands it to such a device, its checksum left undone."""
    at = ETHERNET + IPV4 + offset
    headers = ETHERNET + IPV4 + (frame[46] >> 4) * 4 if frame[23] == 6 else at + 2
    gso = GSO_TCPV4 if gso_size else GSO_NONE
    header = HEADER.pack(NEEDS_CSUM, gso, headers, gso_size, ETHERNET + IPV4, offset)
    return header + frame[:at] + pseudo_sum(frame).to_bytes(2, "big") + frame[at + 2 :]
