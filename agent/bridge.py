"""Carries frames between a tap device and a link, in batches, until the link ends.

The tap gives one frame a system call, that is its nature; on the link one call moves all that is there.

Back-pressure: while the link does not take what was read from the tap, the tap is not read, so its queue (1,000
packets on Linux) fills and the guest's own stack feels it. A frame that the tap does not take is dropped and counted,
as a network card would.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import select
from typing import Protocol

from agent.endpoint import Link
from proto.framing import FrameBatch, FrameReader

HANGUP = select.POLLHUP | select.POLLERR | select.POLLNVAL


class TapGone(Exception):
    """The tap device was taken away: nothing is left to bridge."""


class Attendant(Protocol):
    """What wants to be called beside the traffic, on the same thread: a DHCP client."""

    def fileno(self) -> int:
        """Readable when there is something to attend to."""

    def timeout(self) -> float:
        """Seconds until `attend` must be called though nothing is readable; 0: now, infinity: never."""

    def attend(self) -> None:
        """Do what is due; never waits."""


class Bridge:
    """One link's life."""

    def __init__(self, tap: int, link: Link, framing: str, attendant: Attendant | None = None) -> None:
        """Nothing is owned; `tap` must be non-blocking, the link is made so."""
        self._tap = tap
        self._link = link
        self._attendant = attendant
        self._to_link = FrameBatch(framing)
        self._from_link = FrameReader(framing)
        self._poller = select.poll()
        self.dropped = 0
        """Frames that the tap refused: device down, frame too long."""

    def run(self) -> bytes:
        """Return when the other end closes or resets the link: what it said last, if that was no whole frame.

        Raises FramingError when the link carries no frames, TapGone, OSError when the link breaks in another way.
        """
        try:
            self._carry()
        except ConnectionError:
            with contextlib.suppress(ConnectionError):
                self._read_link()
        return self._from_link.rest()

    def _carry(self) -> None:
        tap, attendant = self._tap, self._attendant
        incoming, outgoing = self._link.incoming, self._link.outgoing
        for descriptor in (incoming, outgoing):
            os.set_blocking(descriptor, False)
        attended = -1 if attendant is None else attendant.fileno()
        if attended >= 0:
            self._poller.register(attended, select.POLLIN)
        self._watch(blocked=False)
        while True:
            ready = dict(self._poller.poll(self._pause()))
            if attendant is not None and (attended in ready or attendant.timeout() <= 0):
                attendant.attend()
            if ready.get(tap, 0) & HANGUP:
                raise TapGone("the tap device is gone")
            if ready.get(tap, 0):
                self._read_tap()
                self._write_link()
            elif self._to_link:
                self._write_link()
            if ready.get(incoming, 0) & ~select.POLLOUT and not self._read_link():
                return
            if outgoing != incoming and ready.get(outgoing, 0) & HANGUP:
                return

    def _pause(self) -> int | None:
        """What poll wants: milliseconds, or None for ever."""
        pause = math.inf if self._attendant is None else self._attendant.timeout()
        return None if pause == math.inf else math.ceil(max(0.0, pause) * 1000)

    def _watch(self, blocked: bool) -> None:
        """Wait for the tap, or where the link is full, for the link to take something."""
        self._poller.register(self._tap, 0 if blocked else select.POLLIN)
        outgoing = select.POLLOUT if blocked else 0
        if self._link.outgoing != self._link.incoming:
            self._poller.register(self._link.outgoing, outgoing)
            outgoing = 0
        self._poller.register(self._link.incoming, select.POLLIN | outgoing)
        self._blocked = blocked

    def _read_tap(self) -> None:
        try:
            self._to_link.fill(functools.partial(os.readv, self._tap))
        except OSError as error:
            raise TapGone(f"the tap device is gone: {error}") from error

    def _write_link(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._to_link.sent(os.write(self._link.outgoing, self._to_link.unsent()))
        blocked = bool(self._to_link)
        if blocked != self._blocked:
            self._watch(blocked)

    def _read_link(self) -> bool:
        try:
            size = os.readv(self._link.incoming, [self._from_link.space()])
        except BlockingIOError:
            return True
        tap, write = self._tap, os.write
        for frame in self._from_link.received(size):
            try:
                write(tap, frame)
            except OSError:
                self.dropped += 1
        return size > 0
