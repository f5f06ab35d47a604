"""What a listener has to say about clients that do it wrong, at a rate that a log can bear.

The first few are a line each, at once. Who goes on is counted, and told every `INTERVAL` in one line: the last of them,
and how many others there were. A client that connects again and again costs a line every few seconds, and none is
missing from the sum.
"""

from __future__ import annotations

import asyncio
import logging

AT_ONCE = 10
"""Lines; one more for each `INTERVAL` that nobody is complained of."""
INTERVAL = 5.0
"""s"""

log = logging.getLogger(__name__)


class Complaints:
    """Of one listener."""

    def __init__(self) -> None:
        self._credit = float(AT_ONCE)
        self._credit_at = 0.0
        self._last = ""
        self._untold = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, complaint: str) -> None:
        """Tell it, now or with others."""
        loop = asyncio.get_running_loop()
        if self._timer is None and self._may_speak(loop.time()):
            log.warning("%s", complaint)
            return
        self._last = complaint
        self._untold += 1
        if self._timer is None:
            self._timer = loop.call_later(INTERVAL, self._tell)

    def close(self) -> None:
        """Tell what has not been told yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell()

    def _may_speak(self, now: float) -> bool:
        self._credit = min(AT_ONCE, self._credit + (now - self._credit_at) / INTERVAL)
        self._credit_at = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def _tell(self) -> None:
        self._timer = None
        self._credit, self._credit_at = 0.0, asyncio.get_running_loop().time()
        others = self._untold - 1
        self._untold = 0
        if others:
            log.warning("%s (and %d others since the last line)", self._last, others)
        else:
            log.warning("%s", self._last)
