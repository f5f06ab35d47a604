"""Byte rings for the data of flows, and the bounded pool their memory comes from: a face for tests and tools."""

from typing import final

__all__ = ["ByteRing", "Pool"]

@final
class Pool:
    def __init__(self, limit: int) -> None:
        """`limit`: bytes that all rings together may hold."""
    def pin(self) -> None:
        """The link points into rings: what is released is kept aside until `unpin`."""
    def unpin(self) -> None: ...
    @property
    def in_use(self) -> int: ...
    @property
    def cached(self) -> int:
        """Bytes of freed blocks that wait to be used again."""

@final
class ByteRing:
    def __init__(self, owner: Pool) -> None: ...
    def reserve(self, size: int) -> bool:
        """False: over a limit."""
    def append(self, data: bytes) -> None:
        """Raises ValueError on more than was reserved."""
    def discard(self, length: int) -> None:
        """Drop from the start. Raises ValueError on more than there is."""
    def release(self) -> None: ...
    def pieces(self, offset: int, length: int) -> list[bytes]:
        """The one or two pieces of memory that hold the range. Raises ValueError on more than there is."""
    @property
    def size(self) -> int: ...
    def __len__(self) -> int: ...
