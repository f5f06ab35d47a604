import asyncio
import os
import selectors
import signal
import socket
from collections.abc import Iterator

import pytest

from worker.selector import EngineSelector

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class PollingEngine:
    """Readiness like the engine's, without traffic."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.timeouts: list[float] = []

    def register(self, fd: int, events: int) -> None:
        self._selector.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, events)

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def run(self, timeout: float) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        return [(key.fd, events) for key, events in self._selector.select(None if timeout < 0 else timeout)]

    def close(self) -> None:
        self._selector.close()


@pytest.fixture
def engine() -> Iterator[PollingEngine]:
    engine = PollingEngine()
    yield engine
    engine.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_select_reports_the_key_and_what_it_was_registered_for(
    engine: PollingEngine, pair: tuple[socket.socket, socket.socket]
) -> None:
    selector = EngineSelector(engine)
    selector.register(pair[0], READ, "data")
    assert selector.select(0) == []
    pair[1].send(b"x")
    ((key, events),) = selector.select(1)
    assert (key.fileobj, key.data, events) == (pair[0], "data", READ)
    selector.modify(pair[0], WRITE, "other")
    assert [(key.data, events) for key, events in selector.select(1)] == [("other", WRITE)]
    selector.unregister(pair[0])
    assert selector.select(0) == []
    assert not selector.get_map()


def test_timeouts_are_passed_on_in_the_engines_terms(
    engine: PollingEngine, pair: tuple[socket.socket, socket.socket]
) -> None:
    selector = EngineSelector(engine)
    selector.register(pair[0], WRITE)
    for timeout in (None, -3, 0, 0.5):
        selector.select(timeout)
    assert engine.timeouts == [-1.0, 0.0, 0.0, 0.5]


def test_a_descriptor_is_registered_once(engine: PollingEngine, pair: tuple[socket.socket, socket.socket]) -> None:
    selector = EngineSelector(engine)
    selector.register(pair[0].fileno(), READ)
    with pytest.raises(KeyError):
        selector.register(pair[0], READ)
    with pytest.raises(KeyError):
        selector.unregister(pair[1])
    with pytest.raises(ValueError, match="closed"):
        selector.register(-1, READ)


def test_an_asyncio_loop_runs_on_it(engine: PollingEngine) -> None:
    async def talk() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(EngineSelector(engine))) as runner:
        assert runner.run(talk()) == b"hello"


def test_a_signal_wakes_the_loop(engine: PollingEngine) -> None:
    async def wait_for_signal() -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, arrived.set)
        loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(5):
            await arrived.wait()
        loop.remove_signal_handler(signal.SIGUSR1)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(EngineSelector(engine))) as runner:
        runner.run(wait_for_signal())
