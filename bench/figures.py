"""What is measured, as numbers: samples, their medians, and how gateways compare. Nothing here measures anything."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

OURS = ("moorage-tap", "moorage")
"""Moorage's own links; of several in one row, the first is what the row is about."""
CEILING = "ceiling"
AHEAD = 1.2
"""Times the best peer that a row should reach; issue 3."""
NEAR_CEILING = 0.9
"""Of the ceiling, which is enough where `AHEAD` times the best peer is more than that."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement."""

    value: float
    cost: float | None = None
    """CPU time of all the gateway's processes, in the row's unit."""
    worker_cost: float | None = None
    """Of those that carry traffic, where that is not all of them."""
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """A sample, or the reason why there is none."""

    row: str
    gateway: str
    sample: Sample | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Median:
    """What the rounds of one row and gateway come to; every number is the median of its own."""

    row: str
    gateway: str
    rounds: int
    """That gave a sample."""
    sample: Sample | None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ratios, each 1 where both are alike and greater where we are better; None: nothing to compare with."""

    to_peer: float | None
    """Our value to that of the best peer."""
    to_ceiling: float | None
    cost_to_peer: float | None
    """CPU time of the cheapest peer to ours."""
    reached: bool | None
    """Whether the row's goal is reached; None: it has none, or there is no peer."""


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index (RFC 5166 section 2.3): 1 where all are equal, 1/n where one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def medians(runs: Sequence[Run]) -> list[Median]:
    """One for each row and gateway, in the order of their first runs."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.row, run.gateway), []).append(run)
    found = []
    for (row, gateway), same in groups.items():
        samples = [run.sample for run in same if run.sample]
        errors = tuple(dict.fromkeys(run.error for run in same if run.error))
        found.append(Median(row, gateway, len(samples), _median(samples) if samples else None, errors))
    return found


def _median(samples: Sequence[Sample]) -> Sample:
    def of(pick: Callable[[Sample], float | None]) -> float | None:
        numbers = [number for sample in samples if (number := pick(sample)) is not None]
        return statistics.median(numbers) if numbers else None

    names = dict.fromkeys(name for sample in samples for name in sample.details)
    details = {name: statistics.median(s.details[name] for s in samples if name in s.details) for name in names}
    value = statistics.median(sample.value for sample in samples)
    return Sample(value, of(lambda sample: sample.cost), of(lambda sample: sample.worker_cost), details)


def compare(samples: Mapping[str, Sample], lower_is_better: bool = False) -> Comparison:
    """How we stand among the gateways of one row, by name."""
    ours = next((samples[name] for name in OURS if name in samples), None)
    ceiling = samples.get(CEILING)
    peers = [sample for name, sample in samples.items() if name not in (*OURS, CEILING)]
    if ours is None:
        return Comparison(None, None, None, None)

    def better(other: float) -> float | None:
        first, second = (other, ours.value) if lower_is_better else (ours.value, other)
        return first / second if second else None

    best = (min if lower_is_better else max)((peer.value for peer in peers), default=None)
    # No CPU time at all means that so little was carried that the clock did not show it.
    cheapest = min((peer.cost for peer in peers if peer.cost), default=None)
    to_peer = better(best) if best is not None else None
    to_ceiling = better(ceiling.value) if ceiling else None
    cost_to_peer = cheapest / ours.cost if cheapest is not None and ours.cost else None
    reached = None
    if to_peer is not None and not lower_is_better:
        reached = (to_peer >= AHEAD or (to_ceiling or 0) >= NEAR_CEILING) and (
            cost_to_peer is None or cost_to_peer >= 1
        )
    return Comparison(to_peer, to_ceiling, cost_to_peer, reached)
