"""Addresses in the three forms a worker meets: text in messages, 4 bytes in IPv4 headers, 16 bytes in the engine."""

from __future__ import annotations

from ipaddress import IPv4Address

_V4_MAPPED = bytes(10) + b"\xff\xff"
"""::ffff:0:0/96, RFC 4291 2.5.5.2."""


def pack_ipv4(text: str) -> bytes:
    """``192.168.127.2`` as 4 bytes. Raises ValueError."""
    return IPv4Address(text).packed


def ipv4_text(packed: bytes) -> str:
    """4 bytes as ``192.168.127.2``."""
    return "{}.{}.{}.{}".format(*packed)


def widen(packed: bytes) -> bytes:
    """A 4-byte address as the engine's 16."""
    return _V4_MAPPED + packed


def narrow(wide: bytes) -> bytes | None:
    """The 4 bytes inside an engine address; None where it is no IPv4 address."""
    return wide[12:] if len(wide) == 16 and wide.startswith(_V4_MAPPED) else None


def pack_mac(text: str) -> bytes:
    """``5a:94:ef:e4:0c:dd`` as 6 bytes, and empty text as none. Raises ValueError."""
    packed = bytes.fromhex(text.replace(":", ""))
    if len(packed) not in (0, 6):
        raise ValueError(f"{text!r} is not a MAC address")
    return packed


def mac_text(packed: bytes) -> str:
    """6 bytes as ``5a:94:ef:e4:0c:dd``."""
    return packed.hex(":")
