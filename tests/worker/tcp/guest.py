"""The other end of a connection, played by hand.

Sequence numbers are relative to each side's initial one, so that a test reads the same wherever in the sequence space
it takes place: 0 is the SYN, 1 the first byte. Time stands still until a test moves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from worker.tcp.connection import Congestion, Connection, Event, State
from worker.wire.headers import Flag, TcpSegment

MS = 1000
SECOND = 1_000_000
START = 5_000_000_000
MSS = 1000
MODULUS = 2**32
ACK, FIN, RST, SYN, PSH = Flag.ACK, Flag.FIN, Flag.RST, Flag.SYN, Flag.PSH


def body(length: int, start: int = 0) -> bytes:
    """Bytes whose value tells their position."""
    return bytes((position * 7 + (position >> 8)) & 255 for position in range(start, start + length))


@dataclass(frozen=True, slots=True)
class Options:
    """What the guest's SYN offers."""

    mss: int | None = MSS
    window_scale: int | None = 7
    sack: bool = True
    timestamps: bool = False


OFFERS = Options()
PLAIN = Options(window_scale=None, sack=False)
NO_SACK = Options(sack=False)


class Guest:
    """Speaks to a connection and hears what it says; `isn` is where both sides' sequence numbers start."""

    def __init__(
        self,
        isn: int,
        offers: Options,
        *,
        mss: int = MSS,
        window: int = 262144,
        memory: int = 4194304,
        gso_max: int = 0,
    ) -> None:
        self.isn = isn
        self.peer_isn = (isn * 3 + 77) % MODULUS
        self.offers = offers
        self.now = START
        self.connection = Connection(iss=self.peer_isn, mss=mss, window=window, memory=memory, gso_max=gso_max)
        self.window = 65535

    def syn(self, flags: Flag = SYN, ack: int = 0, window: int = 65535) -> TcpSegment:
        """The guest's SYN with all it offers."""
        return TcpSegment(
            seq=self.isn,
            ack=(self.peer_isn + ack) % MODULUS if ACK in flags else 0,
            flags=flags,
            window=window,
            mss=self.offers.mss,
            window_scale=self.offers.window_scale,
            sack_permitted=self.offers.sack,
            timestamp=(1, 0) if self.offers.timestamps else None,
        )

    def says(
        self,
        payload: bytes = b"",
        *,
        seq: int = 1,
        ack: int = 1,
        flags: Flag = ACK,
        window: int | None = None,
        sack: Iterable[tuple[int, int]] = (),
        timestamp: int | None = None,
        echo: int = 0,
    ) -> Event:
        """Send one segment."""
        segment = TcpSegment(
            seq=(self.isn + seq) % MODULUS,
            ack=(self.peer_isn + ack) % MODULUS,
            flags=flags,
            window=self.window if window is None else window,
            payload=payload,
            sack=tuple(((self.peer_isn + start) % MODULUS, (self.peer_isn + end) % MODULUS) for start, end in sack),
            timestamp=None if timestamp is None else (timestamp, echo),
        )
        return self.connection.receive(segment, self.now)

    def hears(self) -> list[TcpSegment]:
        """All the connection sends now, and the acknowledgment that waits for data in vain, in the guest's numbers."""
        heard = self.connection.segments(self.now)
        if self.connection.ack_deadline is not None:
            self.now = self.connection.ack_deadline
            self.connection.on_timer(self.now)
            heard += self.connection.segments(self.now)
        return [self.relative(segment) for segment in heard]

    def relative(self, segment: TcpSegment) -> TcpSegment:
        return replace(
            segment,
            seq=(segment.seq - self.peer_isn) % MODULUS,
            ack=(segment.ack - self.isn) % MODULUS if ACK in segment.flags else 0,
            sack=tuple(((start - self.isn) % MODULUS, (end - self.isn) % MODULUS) for start, end in segment.sack),
        )

    def hears_one(self) -> TcpSegment:
        (segment,) = self.hears()
        return segment

    def hears_data(self) -> list[tuple[int, int]]:
        """The ranges of the stream that the connection sends now."""
        return [(s.seq, s.seq + len(s.payload)) for s in self.hears() if s.payload or FIN in s.flags]

    def state(self) -> State:
        """The connection's; a call, because it changes between two looks."""
        return self.connection.state

    def congestion(self) -> Congestion:
        """The connection's; a call for the same reason."""
        return self.connection.congestion

    def waits(self, microseconds: int) -> None:
        self.now += microseconds

    def waits_for_timer(self) -> Event:
        """Let time pass up to the connection's next deadline."""
        assert self.connection.deadline is not None
        self.now = max(self.now, self.connection.deadline)
        return self.connection.on_timer(self.now)

    def window_of(self, segment: TcpSegment) -> int:
        """Bytes that a segment promises."""
        return segment.window << (7 if self.offers.window_scale is not None and SYN not in segment.flags else 0)


def dialling(
    isn: int, offers: Options = OFFERS, *, window: int = 262144, memory: int = 4194304, gso_max: int = 0
) -> Guest:
    """A guest that has opened a connection: established, nothing sent."""
    guest = Guest(isn, offers, window=window, memory=memory, gso_max=gso_max)
    guest.connection.hold(guest.syn(), guest.now)
    guest.connection.answer()
    guest.hears()
    guest.says(timestamp=1 if offers.timestamps else None)
    guest.hears()
    return guest


def called(isn: int, offers: Options = OFFERS, *, window: int = 262144) -> Guest:
    """A guest that was dialled by the gateway: established, nothing sent."""
    guest = Guest(isn, offers, window=window)
    guest.connection.call()
    guest.hears()
    guest.connection.receive(guest.syn(SYN | ACK, ack=1), guest.now)
    guest.hears()
    return guest
