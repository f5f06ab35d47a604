"""The names of the engine's counters."""

__all__ = ["NAMES"]

NAMES: tuple[str, ...]
