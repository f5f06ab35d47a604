"""What is said of captures: the API hands a connection to the supervisor, and the supervisor to a VM's worker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenCapture:
    """API -> supervisor, over ``handover.sock``: the connection whose descriptor comes with this gets a VM's frames as
    an HTTP response. Answer: `Empty` or `Failure`."""

    vm_id: str
    snaplen: int = 0
    """Bytes of each frame; 0: all."""
    first_bytes: bytes = b""
    """What was read of it already, behind the request; of no concern here."""


@dataclass(frozen=True, slots=True)
class AddCapture:
    """Supervisor -> worker, over its SEQPACKET socket: write every frame of the link, as pcapng blocks, to the
    descriptor that comes with this, until it breaks. Answer: `Empty` or `Failure`."""

    interface: int
    """Of the section that was begun there."""
    snaplen: int = 0
