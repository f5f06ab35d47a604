"""Carries frames between a tap device and a link, in batches, until the link ends.

Back-pressure: while the link does not take what was read from the tap, the tap is not read, so its queue (1,000
packets on Linux) fills and the guest's own stack feels it. A frame that the tap does not take is dropped and counted,
as a network card would.
"""

from __future__ import annotations

import os
import select
import socket

from proto.framing import FrameBatch, FrameReader

HANGUP = select.POLLHUP | select.POLLERR | select.POLLNVAL


class TapGone(Exception):
    """The tap device was taken away: nothing is left to bridge."""


class Bridge:
    """One link's life."""

    def __init__(self, tap: int, link: socket.socket, framing: str) -> None:
        """Neither descriptor is owned; `tap` must be non-blocking, `link` is made so."""
        self._tap = tap
        self._link = link
        self._to_link = FrameBatch(framing)
        self._from_link = FrameReader(framing)
        self.dropped = 0
        """Frames that the tap refused: device down, frame too long."""

    def run(self) -> None:
        """Return when the other end closes the link.

        Raises OSError when the link breaks, FramingError when it carries no frames, TapGone.
        """
        tap, link = self._tap, self._link.fileno()
        self._link.setblocking(False)
        poller = select.poll()
        poller.register(link)
        while True:
            poller.register(tap, 0 if self._to_link else select.POLLIN)
            poller.modify(link, select.POLLIN | (select.POLLOUT if self._to_link else 0))
            ready = dict(poller.poll())
            if ready.get(tap, 0) & HANGUP:
                raise TapGone("the tap device is gone")
            if ready.get(tap, 0) & select.POLLIN:
                self._read_tap()
            if self._to_link:
                self._write_link()
            if ready.get(link, 0) & (select.POLLIN | HANGUP) and not self._read_link():
                return

    def _read_tap(self) -> None:
        batch = self._to_link
        while not batch.full:
            try:
                batch.add(os.readv(self._tap, [batch.space()]))
            except BlockingIOError:
                return
            except OSError as error:
                raise TapGone(f"the tap device is gone: {error}") from error

    def _write_link(self) -> None:
        try:
            self._to_link.sent(self._link.send(self._to_link.unsent()))
        except BlockingIOError:
            return

    def _read_link(self) -> bool:
        try:
            size = self._link.recv_into(self._from_link.space())
        except BlockingIOError:
            return True
        for frame in self._from_link.received(size):
            try:
                os.write(self._tap, frame)
            except OSError:
                self.dropped += 1
        return size > 0
