"""What the supervisor tells whoever listens: one frozen dataclass each. `proto.messages.WorkerStats` goes along."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VmAttached:
    vm_id: str
    network: str


@dataclass(frozen=True, slots=True)
class GuestKnown:
    """A VM uses another MAC than before, or its first."""

    vm_id: str
    mac: str


@dataclass(frozen=True, slots=True)
class VmDetached:
    vm_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerRestarted:
    vm_id: str
    pid: int
    reason: str
