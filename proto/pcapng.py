"""What a pcapng stream begins with: its section, and the interfaces that packets were seen on.

draft-ietf-opsawg-pcapng, 4.1 and 4.2, in the byte order of this machine. The packets' own blocks are the engine's.
"""

from __future__ import annotations

import struct

MEDIA_TYPE = "application/x-pcapng"

_SECTION_HEADER_BLOCK = 0x0A0D0D0A
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_LENGTH_UNKNOWN = -1
_INTERFACE_DESCRIPTION_BLOCK = 1
_LINKTYPE_ETHERNET = 1
_SHB_USERAPPL = 4
_IF_NAME = 2
_IF_TSRESOL = 9
_NANOSECONDS = b"\x09"


def section(application: str) -> bytes:
    """The header of a section, whose first interface has the number 0."""
    body = struct.pack("=IHHq", _BYTE_ORDER_MAGIC, 1, 0, _LENGTH_UNKNOWN)
    return _block(_SECTION_HEADER_BLOCK, body + _options((_SHB_USERAPPL, application.encode())))


def interface(name: str, snaplen: int = 0) -> bytes:
    """An Ethernet interface, the next of its section; times are in nanoseconds. `snaplen` 0: frames are whole."""
    body = struct.pack("=HHI", _LINKTYPE_ETHERNET, 0, snaplen)
    return _block(_INTERFACE_DESCRIPTION_BLOCK, body + _options((_IF_NAME, name.encode()), (_IF_TSRESOL, _NANOSECONDS)))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("=II", kind, length) + body + struct.pack("=I", length)


def _options(*options: tuple[int, bytes]) -> bytes:
    """Options, each padded to 32 bits, and their end."""
    return b"".join(
        struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in (*options, (0, b""))
    )
