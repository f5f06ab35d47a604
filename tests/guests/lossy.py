"""A bad line between a guest's agent and Moorage: loses, repeats, reorders and delays whole frames, both ways.

For kernels without netem. ``python -m tests.guests.lossy LISTEN CONNECT IMPAIRMENT`` (the last as JSON) carries one
link from one unix socket to another until either end closes it, then prints what became of the frames. The fate of the
nth frame of a direction depends on the seed alone.

Back-pressure stays what it was: while a side takes nothing, MAX_HELD bytes may wait for it, then the other side is read
no further; frames the other way are not held up by that.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import random
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from proto.framing import FrameReader, pack
from tests.guests.waiting import wait_for

MAX_HELD = 1 << 20
"""Bytes on their way in one direction, give or take one read."""
FROM_GUEST, TO_GUEST = "from_guest", "to_guest"


@dataclass(frozen=True, slots=True)
class Impairment:
    """How bad the line is. The first three are probabilities for each frame, drawn independently."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    delay: float = 0.0
    """Seconds that every frame takes."""
    lateness: float = 0.001
    """Seconds that a reordered frame takes on top, while those behind it overtake."""
    seed: int = 1


@dataclass(slots=True)
class Tally:
    """What became of the frames of one direction."""

    frames: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0


class Line:
    """One direction: takes frames, gives them back when they are due. Reads no clock."""

    def __init__(self, impairment: Impairment, name: str) -> None:
        self._impairment = impairment
        self._draw = random.Random(f"{name} {impairment.seed}").random
        self._held: list[tuple[float, int, bytes]] = []
        self._entered = 0
        self.size = 0
        """Bytes held."""
        self.tally = Tally()

    def take(self, frame: bytes, now: float) -> None:
        """A frame enters, as it lies on the stream."""
        bad, tally = self._impairment, self.tally
        is_lost, is_doubled, is_late = (self._draw() < chance for chance in (bad.loss, bad.duplication, bad.reordering))
        tally.frames += 1
        if is_lost:
            tally.lost += 1
            return
        due = now + bad.delay + (bad.lateness if is_late else 0.0)
        tally.duplicated += is_doubled
        tally.reordered += is_late
        for _ in range(1 + is_doubled):
            self._entered += 1
            self.size += len(frame)
            heapq.heappush(self._held, (due, self._entered, frame))

    def due(self, now: float) -> bytes:
        """The frames whose time has come, one behind the other."""
        frames = []
        while self._held and self._held[0][0] <= now:
            frames.append(heapq.heappop(self._held)[2])
        data = b"".join(frames)
        self.size -= len(data)
        return data

    @property
    def next_due(self) -> float:
        """When the next frame leaves; infinity: the line is empty."""
        return self._held[0][0] if self._held else math.inf


class Pump:
    """Moves frames from one socket over a line to another, as far as either goes without waiting."""

    def __init__(self, source: socket.socket, target: socket.socket, line: Line) -> None:
        self.source, self.target, self.line = source, target, line
        self._reader = FrameReader()
        self._unsent = memoryview(b"")

    @property
    def may_read(self) -> bool:
        return self.line.size + len(self._unsent) < MAX_HELD

    @property
    def is_blocked(self) -> bool:
        """The target did not take everything that was due."""
        return bool(self._unsent)

    def read(self, now: float) -> bool:
        """False: the source is closed."""
        size = self.source.recv_into(self._reader.space())
        for frame in self._reader.received(size):
            self.line.take(pack(bytes(frame)), now)
        return size > 0

    def write(self, now: float) -> None:
        """Send what is due; nothing new while something is left of the last time."""
        if not self._unsent:
            self._unsent = memoryview(self.line.due(now))
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self.target.send(self._unsent) :]


def carry(guest: socket.socket, gateway: socket.socket, impairment: Impairment) -> dict[str, Tally]:
    """Join the two until one of them is closed; the tallies by direction."""
    pumps = (
        Pump(guest, gateway, Line(impairment, FROM_GUEST)),
        Pump(gateway, guest, Line(impairment, TO_GUEST)),
    )
    by_source = {pump.source.fileno(): pump for pump in pumps}
    poller = select.poll()
    with contextlib.suppress(ConnectionError):
        while True:
            for pump, other in (pumps, pumps[::-1]):
                wanted = (select.POLLIN if pump.may_read else 0) | (select.POLLOUT if other.is_blocked else 0)
                poller.register(pump.source, wanted)
            next_due = min((pump.line.next_due for pump in pumps if not pump.is_blocked), default=math.inf)
            pause = None if next_due == math.inf else max(0.0, next_due - time.monotonic())
            ready = poller.poll(None if pause is None else math.ceil(pause * 1000))
            now = time.monotonic()
            if not all(by_source[fd].read(now) for fd, events in ready if events & ~select.POLLOUT):
                break
            for pump in pumps:
                pump.write(now)
    return {FROM_GUEST: pumps[0].line.tally, TO_GUEST: pumps[1].line.tally}


def main(listen: str, connect: str, impairment: str) -> None:
    """Carry one link."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as gateway:
        listener.bind(listen)
        listener.listen(1)
        guest, _ = listener.accept()
        with guest:
            gateway.connect(connect)
            for end in (guest, gateway):
                end.setblocking(False)
            tallies = carry(guest, gateway, Impairment(**json.loads(impairment)))
    print(json.dumps({name: asdict(tally) for name, tally in tallies.items()}))


class LossyLink:
    """The relay as a process of its own, in front of a gateway's socket; for one guest."""

    def __init__(self, directory: Path, gateway: Path, impairment: Impairment) -> None:
        self._path = directory / "lossy.sock"
        self.url = f"unix://{self._path}"
        """Where the guest's agent connects."""
        relay = [sys.executable, "-m", "tests.guests.lossy"]
        self.tallies: dict[str, Tally] = {}
        """What became of the frames, by direction; there when the guest is gone and the block is left."""
        self._relay = subprocess.Popen(
            [*relay, str(self._path), str(gateway), json.dumps(asdict(impairment))], stdout=subprocess.PIPE, text=True
        )
        wait_for(self._path.exists, 5.0, "the lossy line's socket")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            output = self._relay.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:  # the guest is still there, or never came
            self._relay.kill()
            self._relay.communicate()
        else:
            self.tallies = {name: Tally(**counts) for name, counts in json.loads(output).items()}
        self._path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
