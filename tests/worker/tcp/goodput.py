"""Writes docs/tcp-goodput.md: what is left of a link's rate under loss. `python -m tests.worker.tcp.goodput` renews it.

Time is virtual and chance is seeded: the figures are the same on every machine, and change only with the code.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.worker.tcp.network import Channel, Network

DOCUMENT = Path(__file__).parents[3] / "docs" / "tcp-goodput.md"
LOSSES = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SEEDS = range(1, 4)
SIZE = 2_000_000
DATA = random.Random(0).randbytes(SIZE)
HEADING = """\
# TCP under loss

Goodput of each direction in Mbit/s while 2 MB go both ways at once, mean of three seeded runs of two of our own
connections back to back in virtual time: 100 Mbit/s, 20 ms round trip, a queue of 200 segments, windows of 256 KiB,
segments of 1,448 bytes with timestamps. On the right 2 % of the segments are also doubled and 2 % come late by up to
5 ms. Written by `python -m tests.worker.tcp.goodput`; a test compares the table with the code.

| loss | SACK | without SACK | SACK, doubled and late |
| ---: | ---: | ---: | ---: |
"""


def goodput(channel: Channel, sack: bool) -> float:
    """Mbit/s of each direction. Raises AssertionError if anything is lost for good."""
    total = 0
    for seed in SEEDS:
        network = Network(channel, DATA, DATA, seed=seed, sack=sack)
        total += network.run()
        assert all(side.connection.received == DATA for side in network.sides)
    return SIZE * 8 * len(SEEDS) / total


def row(loss: float) -> tuple[float, float, float]:
    clean = Channel(loss=loss)
    rough = Channel(loss=loss, duplicates=0.02, reordered=0.02)
    return goodput(clean, sack=True), goodput(clean, sack=False), goodput(rough, sack=True)


def table() -> str:
    lines = (f"| {loss * 100:g} % | " + " | ".join(f"{rate:.2f}" for rate in row(loss)) + " |\n" for loss in LOSSES)
    return HEADING + "".join(lines)


if __name__ == "__main__":
    DOCUMENT.write_text(table())
