import asyncio
import socket

import dns.message
import dns.rcode
import pytest

from proto.messages import Upstream
from tests.worker.services.fake_upstream import answers, respond, silent, upstream
from worker.services import dns_upstream
from worker.services.dns_upstream import UpstreamClient, is_answer

QUERY = dns.message.make_query("example.com.", "A").to_wire()
QUESTION = QUERY[12:]


@pytest.fixture(autouse=True)
def shorter_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_upstream, "PATIENCE", 0.5)
    monkeypatch.setattr(dns_upstream, "HEAD_START", 0.05)


async def closed_port() -> Upstream:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return Upstream("127.0.0.1", sock.getsockname()[1])


def test_a_query_goes_out_under_another_id_and_port_each_time() -> None:
    async def scenario() -> None:
        async with upstream(answers) as (address, server):
            client = UpstreamClient()
            for _ in range(8):
                answer = await client.ask((address,), QUERY, QUESTION)
                assert answer is not None
                assert answer[12:] == QUESTION
        assert {wire[2:] for wire, _ in server.queries} == {QUERY[2:]}
        assert len({wire[:2] for wire, _ in server.queries}) > 4
        assert len({port for _, port in server.queries}) > 4
        assert client.counters["dns.in_flight"] == 0

    asyncio.run(scenario())


def test_a_silent_or_dead_upstream_is_passed_over() -> None:
    async def scenario() -> None:
        async with upstream(silent) as (mute, _), upstream(answers) as (good, _):
            client = UpstreamClient()
            assert await client.ask((await closed_port(), mute, good), QUERY, QUESTION) is not None
            assert client.counters["dns.upstream_errors"] == 1

    asyncio.run(scenario())


def test_a_failure_is_the_answer_only_where_no_upstream_has_a_better_one() -> None:
    def fails(query: bytes) -> list[bytes]:
        return [respond(query, dns.rcode.SERVFAIL)]

    async def scenario() -> None:
        async with upstream(fails) as (bad, _), upstream(answers) as (good, _):
            better = await UpstreamClient().ask((bad, good), QUERY, QUESTION)
            assert better is not None
            assert better[3] & 15 == dns.rcode.NOERROR
            worse = await UpstreamClient().ask((bad,), QUERY, QUESTION)
            assert worse is not None
            assert worse[3] & 15 == dns.rcode.SERVFAIL

    asyncio.run(scenario())


def test_nobody_answering_is_no_answer() -> None:
    async def scenario() -> None:
        async with upstream(silent) as (mute, _):
            client = UpstreamClient()
            assert await client.ask((mute, await closed_port()), QUERY, QUESTION) is None
            assert client.counters["dns.upstream_timeouts"] == 1
        assert await UpstreamClient().ask((), QUERY, QUESTION) is None

    asyncio.run(scenario())


def test_forged_answers_are_waited_out() -> None:
    def forged_first(query: bytes) -> list[bytes]:
        other_id = bytes([query[0] ^ 1]) + respond(query)[1:]
        other_question = respond(query[:12] + b"\x07exbmple\x03com\0\0\1\0\1")
        return [b"x", other_id, other_question, query, respond(query, tail=b"the real one")]

    async def scenario() -> None:
        async with upstream(forged_first) as (address, _):
            client = UpstreamClient()
            answer = await client.ask((address,), QUERY, QUESTION)
            assert answer is not None
            assert answer.endswith(b"the real one")
            assert client.counters["dns.upstream_mismatched"] == 4

    asyncio.run(scenario())


@pytest.mark.parametrize("over_tcp", [True, False])
def test_a_truncated_answer_is_asked_for_over_tcp(over_tcp: bool) -> None:
    def truncated(query: bytes) -> list[bytes]:
        return [respond(query, flags=0x8380)]

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        answer = respond(query, tail=bytes(3000))
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        async with upstream(truncated) as (address, _):
            server = await asyncio.start_server(whole, "127.0.0.1", address.port) if over_tcp else None
            answer = await UpstreamClient().ask((address,), QUERY, QUESTION)
            assert answer is not None
            assert (len(answer) > 3000, bool(answer[2] & 2)) == (over_tcp, not over_tcp)
            if server is not None:
                server.close()
                await server.wait_closed()

    asyncio.run(scenario())


def test_queries_under_way_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_upstream, "MAX_IN_FLIGHT", 2)

    async def scenario() -> None:
        async with upstream(silent) as (mute, _):
            client = UpstreamClient()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(client.ask((mute,), QUERY, QUESTION)) for _ in range(3)]
            assert [task.result() for task in tasks] == [None] * 3
            assert client.counters["dns.refused_in_flight"] == 1
            assert client.counters["dns.in_flight"] == 0

    asyncio.run(scenario())


def test_an_error_may_come_without_its_question() -> None:
    bare = QUERY[:2] + b"\x81\x81" + bytes(8)
    assert is_answer(QUERY, QUESTION, bare)
    assert not is_answer(QUERY, QUESTION, QUERY[:2] + b"\x81\x80" + bytes(8))
    assert is_answer(QUERY, QUESTION, respond(QUERY).replace(b"example", b"eXaMpLe"))
