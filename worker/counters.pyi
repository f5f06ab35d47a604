"""The names of the engine's counters."""

NAMES: tuple[str, ...]
