"""Supervisor -> worker: what a worker must know to carry frames between its VM and the others of its network.

`SetGuest` goes over ZeroMQ, ahead of a lease; the others over the worker's SEQPACKET socket, as a descriptor travels
with `AddPeer` and the rest must keep its order with that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JoinSwitch:
    """The VM is on a shared network: carry its frames to the peers that will be told, and theirs to it.

    Answer: `Empty`."""

    port_security: bool
    """Let out, and in, only what comes from a MAC and an address that the VM it comes from has."""


@dataclass(frozen=True, slots=True)
class SetGuest:
    """Event: what the VM may call itself to its peers."""

    mac: str
    """Empty: nothing yet."""
    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddPeer:
    """Another VM of the network. Descriptor: a datagram socket connected with its worker; none: only the rest of what
    was told before has changed. Answer: `Empty`."""

    number: int
    mac: str
    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """A VM of the network is gone. Answer: `Empty`."""

    number: int
