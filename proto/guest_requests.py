"""What a guest asks of its gateway's API, as its worker passes it on to the supervisor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ListGuestForwards:
    """A guest asks for the forwards that lead to it. Answer: `Forwards`."""

    vm_id: str


@dataclass(frozen=True, slots=True)
class GuestExpose:
    """A guest asks for a forward. Answer: `Empty` or `Failure`."""

    vm_id: str
    local: str
    remote: str
    protocol: str


@dataclass(frozen=True, slots=True)
class GuestUnexpose:
    """A guest ends a forward that it asked for. Answer: `Empty` or `Failure`."""

    vm_id: str
    local: str
    protocol: str
