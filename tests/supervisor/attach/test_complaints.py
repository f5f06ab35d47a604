import asyncio
import re
from pathlib import Path

import pytest

from supervisor.attach import complaints
from supervisor.attach.complaints import AT_ONCE, Complaints
from supervisor.attach.hyperkit import HyperkitListener
from supervisor.endpoints import UnixEndpoint
from tests.supervisor.attach.listening import Client, listening


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def told(lines: list[str]) -> int:
    """How many complaints these lines stand for."""
    return sum(1 + int(match[1]) if (match := re.search(r"and (\d+) others", line)) else 1 for line in lines)


def test_the_first_are_told_at_once_and_the_rest_together(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complaints, "INTERVAL", 0.2)

    async def scenario() -> None:
        listeners = Complaints()
        for number in range(1000):
            listeners.add(f"complaint {number}")
        assert lines(caplog) == [f"complaint {number}" for number in range(AT_ONCE)]
        while len(caplog.records) == AT_ONCE:
            await asyncio.sleep(0.01)
        assert lines(caplog)[-1].startswith("complaint 999 (and 989 others")
        listeners.add("one more")
        listeners.add("and another")
        assert len(caplog.records) == AT_ONCE + 1, "still too soon"
        while len(caplog.records) == AT_ONCE + 1:
            await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert lines(caplog)[-1].startswith("and another (and 1 others")


def test_what_is_untold_at_the_end_is_told_then(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        listeners = Complaints()
        for number in range(AT_ONCE + 1):
            listeners.add(f"complaint {number}")
        assert len(caplog.records) == AT_ONCE
        listeners.close()
        listeners.close()

    asyncio.run(scenario())
    assert lines(caplog)[-1] == f"complaint {AT_ONCE}"
    assert len(caplog.records) == AT_ONCE + 1


def test_after_a_while_without_any_they_are_told_at_once_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complaints, "INTERVAL", 0.01)

    async def scenario() -> None:
        listeners = Complaints()
        for _ in range(AT_ONCE + 1):
            listeners.add("complaint")
        while len(caplog.records) == AT_ONCE:
            await asyncio.sleep(0.01)
        await asyncio.sleep(2 * 0.01)
        listeners.add("long after")

    asyncio.run(scenario())
    assert lines(caplog)[-1] == "long after"


def test_a_client_that_knocks_without_end_does_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        path = f"{tmp_path}/h"
        async with listening(HyperkitListener(UnixEndpoint(path))):
            for _ in range(200):
                with await Client.connect(path) as client:
                    await client.say(b"GET / HTTP/1.0\r\n" * 4)
                    assert await client.is_dropped()

    asyncio.run(scenario())
    assert len(caplog.records) < AT_ONCE + 5
    assert told(lines(caplog)) == 200
