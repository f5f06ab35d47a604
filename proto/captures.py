"""What is said of captures: the API hands a connection to the supervisor, and the supervisor to a VM's worker.

With the connection a worker gets a file, which it maps: blocks wait there until they are written. Where the worker
dies, the next one gets the same file and goes on with the block that the reader has a part of::

    u64 start, u64 end     the bytes that wait, counted behind this header
    u64 dropped            frames lost since the last block
    u64 writing            0, or the worker died before it could note how much it had written

in the byte order of the machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

BUFFER_SIZE = 1 << 20
"""Of the file; its beginning is zeros."""
BUFFER_HEADER = struct.Struct("=4Q")


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
    """Supervisor -> worker, over its SEQPACKET socket: write every frame of the link, as pcapng blocks, to the first
    descriptor that comes with this, until it breaks; the other is the buffer. Answer: `Empty` or `Failure`."""

    interface: int
    """Of the section that was begun there."""
    snaplen: int = 0
