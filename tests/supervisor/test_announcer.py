import asyncio

import pytest

from supervisor import announcer
from supervisor.announcer import Announcer


def test_changes_are_told_at_once_then_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "PAUSE", 0.1)

    async def scenario() -> None:
        told: asyncio.Queue[int] = asyncio.Queue()

        async def tell() -> None:
            told.put_nowait(1)

        subject = Announcer(tell)
        running = asyncio.ensure_future(subject.run())
        async with asyncio.timeout(10):
            subject.changed()
            await told.get()
            for _ in range(100):
                subject.changed()
                await asyncio.sleep(0)
            await told.get()
        assert told.empty()
        running.cancel()

    asyncio.run(scenario())


def test_leases_that_end_are_told_without_anybody_saying_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "EXPIRY_CHECK", 0.01)

    async def scenario() -> None:
        told = asyncio.Event()

        async def tell() -> None:
            told.set()

        running = asyncio.ensure_future(Announcer(tell).run())
        async with asyncio.timeout(10):
            await told.wait()
        running.cancel()

    asyncio.run(scenario())
