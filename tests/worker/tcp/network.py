"""Two connections back to back over a channel that loses, delays, reorders and duplicates; time is virtual."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from worker.tcp.connection import Connection, Event, State
from worker.wire.headers import Flag, TcpSegment

HEADERS = 54
"""Bytes of Ethernet, IPv4 and TCP headers on the wire."""
WINDOW = 262144
FOREVER = 3_600_000_000
MODULUS = 2**32


@dataclass(frozen=True, slots=True)
class Channel:
    """One direction's properties; probabilities from 0 to 1, times in microseconds."""

    rate: int = 100_000_000
    """Bits a second."""
    delay: int = 10_000
    queue: int = 200
    """Segments that may wait for the wire."""
    loss: float = 0
    duplicates: float = 0
    reordered: float = 0
    """How many are held up by up to half of the delay."""


class Link:
    """A channel in use: says when, and how often, a segment arrives."""

    def __init__(self, channel: Channel, chance: random.Random) -> None:
        self._channel = channel
        self._chance = chance
        self._free_at = 0

    def arrivals(self, segment: TcpSegment, now: int) -> Iterator[int]:
        channel, chance = self._channel, self._chance
        transmission = (len(segment.payload) + HEADERS) * 8_000_000 // channel.rate
        if self._free_at > now + channel.queue * 1500 * 8_000_000 // channel.rate:
            return
        self._free_at = max(self._free_at, now) + transmission
        if chance.random() < channel.loss:
            return
        for _ in range(2 if chance.random() < channel.duplicates else 1):
            held_up = chance.randrange(channel.delay // 2) if chance.random() < channel.reordered else 0
            yield self._free_at + channel.delay + held_up


class Side:
    """One end: a connection, what it has to send, and its way to the other."""

    def __init__(self, connection: Connection, link: Link, data: bytes) -> None:
        self.connection = connection
        self.link = link
        self._data = memoryview(data)
        self._taken = 0
        self.events = Event(0)
        self.sent = 0

    def feed(self) -> None:
        """Play the host socket that has more data, and closes at the end of it."""
        if self.connection.state < State.ESTABLISHED:
            return
        while self._taken < len(self._data):
            room = min(self.connection.room, 65536)
            taken = self.connection.send(bytes(self._data[self._taken : self._taken + room])) if room else 0
            if not taken:
                return
            self._taken += taken
        self.connection.finish()


class Network:
    """Runs two sides until both have nothing left to do."""

    def __init__(
        self,
        channel: Channel,
        there: bytes,
        back: bytes,
        *,
        seed: int = 1,
        sack: bool = True,
        isn: int = 2**32 - 70_000,
        gso_max: int = 0,
    ) -> None:
        """`gso_max`: both hand over up to so many bytes in one segment, which the channel carries in pieces."""
        chance = random.Random(seed)
        self._sack = sack
        self._order = count()
        self._arriving: list[tuple[int, int, int, TcpSegment]] = []
        self.now = 1_000_000
        self.sides = [
            Side(Connection(iss=iss, window=WINDOW, gso_max=gso_max), Link(channel, chance), data)
            for iss, data in ((isn, there), ((isn * 5) % 2**32, back))
        ]

    def run(self) -> int:
        """Open, transfer both ways, close; how long it took in microseconds."""
        began = self.now
        self.sides[0].connection.call()
        self._emit(0)
        while (at := self._next()) is not None:
            assert at < began + FOREVER, f"no end after {FOREVER} us"
            self.now = max(self.now, at)
            self._deliver()
            self._expire()
            if all(side.connection.state in (State.CLOSED, State.TIME_WAIT) for side in self.sides):
                break
        return self.now - began

    def _next(self) -> int | None:
        times = [due for side in self.sides for due in (side.connection.deadline, side.connection.ack_deadline)]
        times.append(self._arriving[0][0] if self._arriving else None)
        return min((at for at in times if at is not None), default=None)

    def _deliver(self) -> None:
        while self._arriving and self._arriving[0][0] <= self.now:
            _, _, index, segment = heapq.heappop(self._arriving)
            connection = self.sides[index].connection
            if connection.state is State.CLOSED:
                if index == 0 or self.sides[1].events:
                    continue
                connection.hold(segment, self.now)
                connection.answer()
            else:
                self.sides[index].events |= connection.receive(segment, self.now)
            self._emit(index)

    def _expire(self) -> None:
        for index, side in enumerate(self.sides):
            due = (side.connection.deadline, side.connection.ack_deadline)
            if any(at is not None and at <= self.now for at in due):
                side.events |= side.connection.on_timer(self.now)
                self._emit(index)

    def _emit(self, index: int) -> None:
        side = self.sides[index]
        side.feed()
        for segment in side.connection.segments(self.now):
            side.sent += 1
            for piece in cut(segment, side.connection.mss):
                carried = piece if self._sack else replace(piece, sack_permitted=False)
                for at in side.link.arrivals(piece, self.now):
                    heapq.heappush(self._arriving, (at, next(self._order), 1 - index, carried))


def cut(segment: TcpSegment, mss: int) -> Iterator[TcpSegment]:
    """What a network card with segmentation offload makes of a segment: FIN and PSH belong to the last piece."""
    whole = segment.payload
    for start in range(0, max(1, len(whole)), mss):
        piece, is_last = whole[start : start + mss], start + mss >= len(whole)
        flags = segment.flags if is_last else segment.flags & ~(Flag.FIN | Flag.PSH)
        yield replace(segment, seq=(segment.seq + start) % MODULUS, payload=piece, flags=flags)
