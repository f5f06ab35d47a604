"""What the supervisor and an SSH carrier say to each other, over the carrier's SEQPACKET socket."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CarrySsh:
    """Supervisor -> carrier: carry each connection to a unix socket of the guest. Descriptor: the listening socket."""

    user: str
    host: str
    port: int
    """Of the SSH server; the name under which its host key is known."""
    path: str
    key: str
    """A file."""
    passphrase: str = field(default="", repr=False)
    secure: bool = False
    """Check the host key against the user's known_hosts."""


@dataclass(frozen=True, slots=True)
class CallSshServer:
    """Carrier -> supervisor: it wants a connection to its SSH server. Descriptor: a stream socket to join to it."""
