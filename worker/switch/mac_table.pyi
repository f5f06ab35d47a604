"""The MAC table of the engine: a face for tests. Peers are numbers from 1 on, MACs 6 bytes, times microseconds."""

from typing import final

__all__ = ["MacTableFace"]

@final
class MacTableFace:
    def __init__(self, seed: int) -> None: ...
    def find(self, mac: bytes, now: int) -> int:
        """The peer; 0: none has it."""
    def put(self, mac: bytes, peer: int, learned: bool, now: int) -> bool:
        """Whether the table took it."""
    def forget(self, peer: int) -> None: ...
