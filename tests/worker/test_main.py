import asyncio
import os
import selectors
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import zmq.asyncio

from proto.channels import Responder
from proto.fdpass import FdChannel
from proto.framing import pack
from proto.messages import Framing, GuestSeen, LinkClosed, Network, Spawn
from worker.addr import pack_ipv4, widen
from worker.engine import Engine
from worker.main import MAX_UPCALLS_PER_TURN, Worker, take_first
from worker.selector import EngineSelector
from worker.services.gateway import Gateway
from worker.upcalls import Action, Upcall

GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xee"
NETWORK = Network(
    "default", "192.168.127.0/24", "192.168.127.1", "5a:94:ef:e4:0c:dd", "192.168.127.254", 1500, 3600,
    nat={"192.168.127.254": "127.0.0.1"},
)  # fmt: skip


FIRST = pack(b"one") + pack(b"three")


class ScriptedEngine:
    """An engine whose upcalls the test makes, and that writes down what it is told."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.upcall_fd, self._upcall_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._upcalls: list[tuple[Any, ...]] = []
        self.calls: list[tuple[Any, ...]] = []

    def upcall(self, *upcalls: tuple[Any, ...]) -> None:
        self._upcalls += upcalls
        os.write(self._upcall_write, b"x")

    def take_upcalls(self) -> list[tuple[Any, ...]]:
        os.read(self.upcall_fd, 4096)
        taken, self._upcalls = self._upcalls, []
        return taken

    def register(self, fd: int, events: int) -> None:
        self._selector.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, events)

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def run(self, timeout: float) -> list[tuple[int, int]]:
        return [(key.fd, events) for key, events in self._selector.select(None if timeout < 0 else timeout)]

    def set_verdict(self, *verdict: Any) -> None:
        self.calls.append(("set_verdict", *verdict))

    def inject(self, frame: bytes) -> None:
        self.calls.append(("inject", frame))

    def receive(self, data: bytes) -> None:
        self.calls.append(("receive", data))

    def map_address(self, *mapping: bytes) -> None:
        self.calls.append(("map_address", *mapping))

    def send_frame(self, frame: bytes) -> bool:
        self.calls.append(("send_frame", frame))
        return True

    def counters(self) -> dict[str, int]:
        return {"link.frames": 1}

    def close(self) -> None:
        self._selector.close()
        os.close(self.upcall_fd)
        os.close(self._upcall_write)


def play(folder: Path, scenario: Callable[[ScriptedEngine, Worker], Awaitable[None]]) -> list[Any]:
    """Run a worker through a scenario that ends with its link; what the supervisor heard."""
    address = f"ipc://{folder}/workers.sock"
    heard: list[Any] = []
    engine = ScriptedEngine()

    async def on_message(_identity: bytes, message: Any) -> None:
        heard.append(message)

    async def run() -> None:
        context = zmq.asyncio.Context()
        responder = Responder(context, address, on_message)
        responder.start()
        ours, theirs = FdChannel.pair()
        worker = Worker(Spawn("vm-1", "stream32", NETWORK, address), cast("Engine", engine), theirs)
        serving = asyncio.get_running_loop().create_task(worker.run())
        try:
            async with asyncio.timeout(10):
                await scenario(engine, worker)
        finally:
            engine.upcall((Upcall.LINK_CLOSED, "eof", True))
            async with asyncio.timeout(10):
                await serving
                await until(lambda: LinkClosed("vm-1", "eof") in heard)
            await responder.close()
            context.term()
            ours.close()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(EngineSelector(engine))) as runner:
        runner.run(run())
    engine.close()
    return heard


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_verdict_is_given_and_the_frame_goes_on(tmp_path: Path) -> None:
    alias, loopback = widen(pack_ipv4("192.168.127.254")), widen(pack_ipv4("127.0.0.1"))

    async def scenario(engine: ScriptedEngine, _worker: Worker) -> None:
        engine.upcall((Upcall.VERDICT, 6, alias, 80, b"frame"))
        await until(lambda: len(engine.calls) == 3)
        assert engine.calls == [
            ("map_address", alias, loopback),
            ("set_verdict", 6, alias, 80, Action.CARRY, loopback, 80),
            ("inject", b"frame"),
        ]

    play(tmp_path, scenario)


def test_a_guest_that_shows_itself_is_reported(tmp_path: Path) -> None:
    async def scenario(engine: ScriptedEngine, _worker: Worker) -> None:
        engine.upcall((Upcall.GUEST, GUEST_MAC, b""), (Upcall.GUEST, GUEST_MAC, widen(pack_ipv4("192.168.127.2"))))
        await asyncio.sleep(0.05)

    heard = play(tmp_path, scenario)
    seen = [message for message in heard if isinstance(message, GuestSeen)]
    assert [(event.mac, event.ip) for event in seen] == [
        ("5a:94:ef:e4:0c:ee", ""),
        ("5a:94:ef:e4:0c:ee", "192.168.127.2"),
    ]


@pytest.mark.parametrize(
    ("framing", "calls"), [("messages", [("inject", b"one"), ("inject", b"three")]), ("stream32", [("receive", FIRST)])]
)
def test_what_was_read_of_the_link_before_comes_first(framing: Framing, calls: list[tuple[Any, ...]]) -> None:
    engine = ScriptedEngine()
    for first_bytes in (b"", FIRST):
        take_first(cast("Engine", engine), Spawn("vm1", framing, NETWORK, "ipc:///nowhere", first_bytes=first_bytes))
    assert engine.calls == calls


def test_upcalls_leave_the_loop_its_turn(tmp_path: Path) -> None:
    async def scenario(engine: ScriptedEngine, _worker: Worker) -> None:
        upcall = (Upcall.VERDICT, 6, widen(pack_ipv4("192.0.2.1")), 80, b"frame")
        engine.calls.clear()
        engine.upcall(*[upcall] * (3 * MAX_UPCALLS_PER_TURN))
        seen = set()
        while len(engine.calls) < 6 * MAX_UPCALLS_PER_TURN:
            seen.add(len(engine.calls))
            await asyncio.sleep(0)
        assert {2 * MAX_UPCALLS_PER_TURN, 4 * MAX_UPCALLS_PER_TURN} <= seen

    play(tmp_path, scenario)


def test_upcalls_wait_in_the_engine_s_bounded_queue_until_those_before_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(engine: ScriptedEngine, worker: Worker) -> None:
        upcall = (Upcall.VERDICT, 6, widen(pack_ipv4("192.0.2.1")), 80, b"frame")
        take = engine.take_upcalls
        undone: list[int] = []

        def counting() -> list[tuple[Any, ...]]:
            undone.append(len(worker._upcalls))
            return take()

        monkeypatch.setattr(engine, "take_upcalls", counting)
        engine.calls.clear()
        for _ in range(10):
            engine.upcall(*[upcall] * (2 * MAX_UPCALLS_PER_TURN))
            await asyncio.sleep(0)
        await until(lambda: len(engine.calls) == 40 * MAX_UPCALLS_PER_TURN)
        assert set(undone) == {0}

    play(tmp_path, scenario)


def test_an_upcall_that_fails_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_self: object, frame: bytes) -> None:
        raise RuntimeError(frame)

    monkeypatch.setattr(Gateway, "on_frame", fail)

    async def scenario(engine: ScriptedEngine, worker: Worker) -> None:
        engine.upcall((Upcall.FRAME, b"x"), (Upcall.VERDICT, 6, widen(pack_ipv4("192.0.2.1")), 80, b"frame"))
        await until(lambda: ("inject", b"frame") in engine.calls)
        assert worker._counters()["worker.upcall_errors"] == 1

    play(tmp_path, scenario)
    assert "upcall 1 failed" in caplog.text
