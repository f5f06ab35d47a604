"""A Python face over one TCP connection, with memory of its own: for tests and tools."""

from enum import IntEnum, IntFlag
from typing import final

from worker.wire.headers import TcpSegment

__all__ = ["Congestion", "Connection", "Event", "State"]

class State(IntEnum):
    CLOSED = 0
    LISTEN = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    ESTABLISHED = 4
    FIN_WAIT_1 = 5
    FIN_WAIT_2 = 6
    CLOSE_WAIT = 7
    CLOSING = 8
    LAST_ACK = 9
    TIME_WAIT = 10

class Congestion(IntEnum):
    OPEN = 0
    RECOVERY = 1
    LOSS = 2

class Event(IntFlag):
    DATA = 1
    RING = 2
    ESTABLISHED = 4
    FIN = 8
    RESET = 16
    ACKED = 32
    CLOSED = 64
    TIMEOUT = 128
    REOPEN = 256
    BAD_ACK = 512
    DROPPED = 1024
    RECOVERY = 2048
    DSACK = 4096

@final
class Connection:
    """Times are microseconds of a clock of the caller's; sequence numbers are as they are on the wire."""

    reading: bool
    """Whether the host socket takes at once what is in order."""
    iss: int
    """The initial sequence number; to be set only to stand for a connection that has sent 4 GiB since."""

    ack_limit: int
    """Bytes that may at most arrive in order without being acknowledged at once; fewer than two segments: these."""

    def __init__(
        self, iss: int, mss: int = 1460, window: int = 262144, memory: int = 4194304, gso_max: int = 0
    ) -> None:
        """A closed connection. `mss`: payload bytes that the MTU allows; `window` and `memory` in bytes; `gso_max`:
        payload bytes of one frame to a link that cuts it into segments, else 0."""
    def hold(self, syn: TcpSegment, now: int) -> None:
        """Keep what the other end's SYN says, without an answer yet."""
    def answer(self) -> None:
        """Let the SYN that is held be answered."""
    def call(self) -> None:
        """Open a connection to the other end."""
    def receive(self, segment: TcpSegment, now: int) -> Event:
        """Take in a segment. Raises MemoryError where the engine would abort the connection."""
    def read(self, size: int) -> int:
        """Let the host socket take up to `size` bytes out of the receive ring; how many it took."""
    def send(self, data: bytes) -> int:
        """Put bytes into the send ring; how many there was room for."""
    def finish(self) -> None:
        """Send FIN after the bytes at hand."""
    def on_timer(self, now: int) -> Event: ...
    def segments(self, now: int, limit: int = 65536) -> list[TcpSegment]:
        """All that is to be sent now."""
    @property
    def state(self) -> State: ...
    @property
    def congestion(self) -> Congestion: ...
    @property
    def deadline(self) -> int | None:
        """When `on_timer` must be called."""
    @property
    def ack_deadline(self) -> int | None:
        """When it must be called for an acknowledgment that waits for data to carry it."""
    @property
    def received(self) -> bytes:
        """All that the host socket has taken."""
    @property
    def unread(self) -> int:
        """Bytes in order that the host socket has not taken."""
    @property
    def unsent(self) -> int:
        """Bytes of the send ring that were never sent."""
    @property
    def room(self) -> int:
        """How many more bytes than those at hand both windows would let out."""
    @property
    def in_flight(self) -> int: ...
    @property
    def mss(self) -> int:
        """Payload bytes of a full segment."""
    @property
    def cwnd(self) -> int: ...
    @property
    def ssthresh(self) -> int: ...
    @property
    def srtt(self) -> int:
        """Microseconds; 0: not measured yet."""
    @property
    def rto(self) -> int:
        """Microseconds."""
    @property
    def memory_in_use(self) -> int: ...
