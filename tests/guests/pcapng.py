"""Reads pcapng (draft-ietf-opsawg-pcapng), strictly: any block that is not as Moorage writes it fails the test."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

FROM_GUEST, TO_GUEST = 1, 2


@dataclass(frozen=True, slots=True)
class Captured:
    """One packet."""

    interface: int
    time: float
    """s since 1970."""
    frame: bytes
    length: int
    """On the link; `frame` may be shorter."""
    direction: int
    lost: int
    """Frames before it that were not captured."""


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each whole block."""
    at = 0
    while len(data) - at >= 8:
        kind, length = struct.unpack_from("=II", data, at)
        assert length >= 12
        assert length % 4 == 0
        if len(data) - at < length:
            return
        assert struct.unpack_from("=I", data, at + length - 4) == (length,)
        yield kind, data[at + 8 : at + length - 4]
        at += length


def options(data: bytes) -> dict[int, bytes]:
    """Options by code; their end must be there."""
    found: dict[int, bytes] = {}
    while True:
        code, length = struct.unpack_from("=HH", data)
        if code == 0:
            assert len(data) == 4
            return found
        found[code] = data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]


def packets(data: bytes) -> list[Captured]:
    """All packets of a stream, or of a part of one that begins with a block."""
    found = []
    for kind, body in blocks(data):
        if kind != 6:
            continue
        interface, high, low, taken, length = struct.unpack_from("=IIIII", body)
        rest = options(body[20 + taken + -taken % 4 :])
        (direction,), (lost,) = struct.unpack("=I", rest[2]), struct.unpack("=Q", rest[4])
        found.append(Captured(interface, ((high << 32) + low) / 1e9, body[20 : 20 + taken], length, direction, lost))
    return found


def interfaces(data: bytes) -> list[str]:
    """The names of the interfaces of a stream, whose head must be right."""
    (first, section), *others = blocks(data)
    assert first == 0x0A0D0D0A
    assert struct.unpack_from("=IHHq", section) == (0x1A2B3C4D, 1, 0, -1)
    names = []
    for kind, body in others:
        if kind == 1:
            assert struct.unpack_from("=HH", body) == (1, 0)  # Ethernet
            described = options(body[8:])
            assert described[9] == b"\x09"  # nanoseconds
            names.append(described[2].decode())
    return names
