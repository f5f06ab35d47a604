import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from proto.channels import BlockingRequester, EventPublisher, EventSubscriber, Requester, Responder
from proto.codec import Message
from proto.errors import RequestFailed, RequestTimeout
from proto.events import VmAttached
from proto.messages import Empty, GetStats, Hello, ListVms, Shutdown, Vms, WorkerStats

Scenario = Callable[[zmq.asyncio.Context, str], Coroutine[Any, Any, None]]


def run(tmp_path: Path, scenario: Scenario) -> None:
    async def main() -> None:
        context = zmq.asyncio.Context()
        try:
            await asyncio.wait_for(scenario(context, f"ipc://{tmp_path}/s"), 10)
        finally:
            context.destroy(linger=0)

    asyncio.run(main())


async def no_handler(peer: bytes, message: Message) -> Message | None:
    raise AssertionError(message)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_both_ends_ask_and_answer(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        seen: list[tuple[bytes, Message]] = []

        async def supervisor(peer: bytes, message: Message) -> Message | None:
            seen.append((peer, message))
            return None

        async def worker(message: Message) -> Message | None:
            return WorkerStats("vm1", {"a": 1}) if isinstance(message, GetStats) else None

        responder = Responder(context, endpoint, supervisor)
        requester = Requester(context, endpoint, b"vm1", worker)
        responder.start()
        requester.start()
        assert await requester.request(Hello("vm1", 7)) == Empty()
        assert seen == [(b"vm1", Hello("vm1", 7))]
        assert await responder.request(b"vm1", GetStats()) == WorkerStats("vm1", {"a": 1})
        await requester.notify(Shutdown())
        await until(lambda: len(seen) == 2)
        await requester.close()
        await responder.close()

    run(tmp_path, scenario)


def test_answers_find_their_request_in_any_order(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        gate = asyncio.Event()

        async def handler(peer: bytes, message: Message) -> Message | None:
            if isinstance(message, Hello):
                await gate.wait()
                return message
            gate.set()
            return None

        responder = Responder(context, endpoint, handler)
        requester = Requester(context, endpoint, b"x")
        responder.start()
        requester.start()
        slow = asyncio.ensure_future(requester.request(Hello("a", 1)))
        assert await requester.request(ListVms()) == Empty()
        assert await slow == Hello("a", 1)
        await requester.close()
        await responder.close()

    run(tmp_path, scenario)


def failing(error: Exception) -> Callable[[bytes, Message], Awaitable[Message | None]]:
    async def handler(peer: bytes, message: Message) -> Message | None:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "code"),
    [(RequestFailed.because("not-found", "no such thing"), "not-found"), (ZeroDivisionError(), "internal")],
)
def test_a_handler_that_fails_answers_a_failure(tmp_path: Path, error: Exception, code: str) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        responder = Responder(context, endpoint, failing(error))
        requester = Requester(context, endpoint)
        responder.start()
        requester.start()
        for _ in range(2):  # the channel survives it
            with pytest.raises(RequestFailed) as failed:
                await requester.request(ListVms())
            assert failed.value.failure.code == code
        await requester.close()
        await responder.close()

    run(tmp_path, scenario)


def test_no_answer_is_a_timeout_and_an_unknown_peer_is_unavailable(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        requester = Requester(context, endpoint)
        requester.start()
        with pytest.raises(RequestTimeout, match="ListVms"):
            await requester.request(ListVms(), timeout=0.05)
        responder = Responder(context, endpoint, no_handler)
        responder.start()
        with pytest.raises(RequestFailed) as failed:
            await responder.request(b"nobody", GetStats())
        assert failed.value.failure.code == "unavailable"
        await requester.close()
        await responder.close()

    run(tmp_path, scenario)


def test_junk_is_counted_and_the_channel_goes_on(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        async def handler(peer: bytes, message: Message) -> Message | None:
            return message

        responder = Responder(context, endpoint, handler)
        responder.start()
        raw = context.socket(zmq.DEALER)
        raw.connect(endpoint)
        for junk in ([b"junk"], [b"a", b"b", b"c"], [b""]):
            await raw.send_multipart(junk)
        requester = Requester(context, endpoint)
        requester.start()
        assert await requester.request(ListVms()) == ListVms()
        await until(lambda: responder.refused == 3)
        raw.close(linger=0)
        await requester.close()
        await responder.close()

    run(tmp_path, scenario)


def test_a_restarted_peer_takes_over_its_identity(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        async def supervisor(peer: bytes, message: Message) -> Message | None:
            return None

        def worker(pid: int) -> Requester:
            async def handler(message: Message) -> Message | None:
                return Hello("vm1", pid)

            requester = Requester(context, endpoint, b"vm1", handler)
            requester.start()
            return requester

        responder = Responder(context, endpoint, supervisor)
        responder.start()
        first = worker(1)
        await first.request(Hello("vm1", 1))
        second = worker(2)
        await first.close()
        await second.request(Hello("vm1", 2))
        assert await responder.request(b"vm1", GetStats()) == Hello("vm1", 2)
        await second.close()
        await responder.close()

    run(tmp_path, scenario)


def test_threads_ask_through_one_blocking_requester(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        async def handler(peer: bytes, message: Message) -> Message | None:
            if isinstance(message, ListVms):
                return Vms(())
            raise RequestFailed.because("conflict", "taken")

        responder = Responder(context, endpoint, handler)
        responder.start()
        requester = BlockingRequester(endpoint)
        answers: list[object] = []

        def ask() -> None:
            answers.append(requester.request(ListVms()))
            try:
                requester.request(Shutdown())
            except RequestFailed as error:
                answers.append(error.failure.code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        await until(lambda: not any(thread.is_alive() for thread in threads))
        assert sorted(map(str, answers)) == ["Vms(vms=())"] * 4 + ["conflict"] * 4
        requester.close()
        await responder.close()

    run(tmp_path, scenario)


def test_a_blocking_request_without_an_answer_times_out(tmp_path: Path) -> None:
    requester = BlockingRequester(f"ipc://{tmp_path}/nobody")
    with pytest.raises(RequestTimeout):
        requester.request(ListVms(), timeout=0.05)
    requester.close()


def test_a_subscriber_hears_events(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context, endpoint: str) -> None:
        publisher = EventPublisher(context, endpoint)
        subscriber = EventSubscriber(endpoint)
        event = VmAttached("vm1", "default")
        heard = None
        async with asyncio.timeout(5):
            while heard is None:  # the subscription takes a moment to reach the publisher
                publisher.publish(event)
                heard = subscriber.receive(0.05)
        assert heard == event
        subscriber.close()
        publisher.close()

    run(tmp_path, scenario)
