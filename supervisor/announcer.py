"""Tells workers of changes that come often: names of guests that boot. Many in one go, and at most so often."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

PAUSE = 0.5
"""s between two rounds: a guest that renames itself all the time, or a thousand that boot, cost no more than that."""
EXPIRY_CHECK = 30.0
"""s; leases end without anybody saying so."""


class Announcer:
    """Runs `tell` soon after each `changed`."""

    def __init__(self, tell: Callable[[], Awaitable[None]]) -> None:
        self._tell = tell
        self._event = asyncio.Event()

    def changed(self) -> None:
        """There may be something to tell."""
        self._event.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXPIRY_CHECK):
                    await self._event.wait()
            self._event.clear()
            await self._tell()
            await asyncio.sleep(PAUSE)
