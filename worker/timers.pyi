"""The timing wheel of the engine: a face for tests. Times are microseconds."""

from typing import final

__all__ = ["TimerWheel"]

@final
class TimerWheel:
    def __init__(self, count: int, now: int) -> None:
        """A wheel with `count` timers, none armed."""
    def arm(self, which: int, at: int) -> None: ...
    def disarm(self, which: int) -> None: ...
    def expired(self, now: int) -> list[int]:
        """The timers that have come up by `now`, taken out."""
    def next(self) -> int:
        """When to look again; 0: never."""
