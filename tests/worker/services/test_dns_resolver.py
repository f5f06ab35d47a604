import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest

from proto.messages import Network, Upstream
from tests.worker.services.fake_upstream import Behaviour, respond, silent, upstream
from worker.services import dns_resolver
from worker.services.dns import DnsServer, Forwarded, Query
from worker.services.dns_resolver import FAILURE_RECHECK, Resolver


class Clock:
    """A loop whose time moves when the test says so, besides by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.ahead = 0.0

    def time(self) -> float:
        return self._loop.time() + self.ahead

    def create_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._loop.create_task(work)


class Scene:
    """A resolver under a clock of its own."""

    def __init__(self, network: Network, *upstreams: Upstream, **domains: tuple[Upstream, ...]) -> None:
        self.network = replace(network, zones=(), upstreams=upstreams, domain_upstreams=domains)
        self.clock = Clock(asyncio.get_running_loop())
        self.resolver = Resolver(self.clock, self.network)  # type: ignore[arg-type]
        self.server = DnsServer(self.network)

    def query(self, name: str = "www.example.com.", kind: str = "A") -> Query:
        decision = self.server.receive(dns.message.make_query(name, kind).to_wire(), over_tcp=False)
        assert isinstance(decision, Forwarded)
        return decision.query

    async def ask(self, name: str = "www.example.com.", kind: str = "A") -> dns.message.Message:
        query = self.query(name, kind)
        return dns.message.from_wire(self.server.fit(query, await self.resolver.resolve(query)))


def says(text: str, ttl: int = 300) -> Behaviour:
    def answer(wire: bytes) -> list[bytes]:
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(query.question[0].name, ttl, "IN", "A", text))
        return [response.to_wire()]

    return answer


def fails(wire: bytes) -> list[bytes]:
    return [respond(wire, dns.rcode.SERVFAIL)]


def address(message: dns.message.Message) -> str:
    assert message.rcode() == dns.rcode.NOERROR, message
    text: str = message.answer[0][0].to_text()
    return text


@pytest.fixture(autouse=True)
def shorter_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_resolver, "ANSWER_DEADLINE", 0.3)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_an_answer_is_asked_for_once_in_its_time(network: Network) -> None:
    async def scenario() -> None:
        async with upstream(says("192.0.2.1")) as (server, played):
            scene = Scene(network, server)
            assert (await scene.ask()).answer[0].ttl == 300
            scene.clock.ahead = 100
            again = await scene.ask("WWW.example.com.")
            assert 198 <= again.answer[0].ttl <= 200
            assert again.question[0].name.to_text() == "WWW.example.com."
            assert len(played.queries) == 1
            scene.clock.ahead = 300
            assert (await scene.ask()).answer[0].ttl == 300
            assert len(played.queries) == 2
            await scene.ask(kind="AAAA")
            assert len(played.queries) == 3
            assert scene.resolver.counters["dns.cache_hits"] == 1

    play(scenario)


def test_equal_questions_share_one_query(network: Network) -> None:
    async def scenario() -> None:
        async with upstream(says("192.0.2.1")) as (server, played):
            scene = Scene(network, server)
            answers = await asyncio.gather(*(scene.ask() for _ in range(50)))
            assert {address(answer) for answer in answers} == {"192.0.2.1"}
            assert len(played.queries) == 1
            assert scene.resolver.counters["dns.shared"] == 49
            assert scene.resolver.counters["dns.waiting"] == 0

    play(scenario)


@pytest.mark.parametrize("broken", [silent, fails])
def test_a_stale_answer_is_better_than_none(network: Network, broken: Behaviour) -> None:
    async def scenario() -> None:
        async with upstream(says("192.0.2.1")) as (server, played):
            scene = Scene(network, server)
            await scene.ask()
            played.behaviour = broken
            scene.clock.ahead = 400
            stale = await scene.ask()
            assert (address(stale), stale.answer[0].ttl) == ("192.0.2.1", 30)
            asked = len(played.queries)
            await scene.ask()
            assert len(played.queries) == asked, "the upstream is left alone for a moment"
            played.behaviour = says("192.0.2.2")
            scene.clock.ahead += FAILURE_RECHECK + 1
            async with asyncio.timeout(10):
                while address(await scene.ask()) != "192.0.2.2":
                    scene.clock.ahead += FAILURE_RECHECK + 1

    play(scenario)


def test_without_any_answer_a_failure_is_a_failure(network: Network) -> None:
    async def scenario() -> None:
        async with upstream(fails) as (bad, _), upstream(silent) as (mute, _):
            assert (await Scene(network, bad).ask()).rcode() == dns.rcode.SERVFAIL
            assert (await Scene(network, mute).ask()).rcode() == dns.rcode.SERVFAIL
        assert (await Scene(network).ask()).rcode() == dns.rcode.SERVFAIL

    play(scenario)


def test_an_answer_that_is_late_is_there_when_the_guest_asks_again(network: Network) -> None:
    held: list[bytes] = []

    def slow(query: bytes) -> list[bytes]:
        held.append(query)
        return []

    async def scenario() -> None:
        async with upstream(slow) as (server, played):
            scene = Scene(network, server)
            assert (await scene.ask()).rcode() == dns.rcode.SERVFAIL
            again = asyncio.ensure_future(scene.ask())
            await asyncio.sleep(0)
            ((query, port),) = played.queries
            played.transport.sendto(says("192.0.2.1")(query)[0], ("127.0.0.1", port))
            assert address(await again) == "192.0.2.1"
            assert len(held) == 1

    play(scenario)


def test_other_upstreams_are_asked_again_and_an_old_answer_serves_when_they_fail(network: Network) -> None:
    async def scenario() -> None:
        async with upstream(says("192.0.2.1")) as (before, _), upstream(says("192.0.2.2")) as (after, played):
            scene = Scene(network, before)
            await scene.ask()
            scene.resolver.update(replace(scene.network, upstreams=(after,)))
            assert address(await scene.ask()) == "192.0.2.2"
            played.behaviour = fails
            scene.resolver.update(replace(scene.network, upstreams=(after, after)))
            assert address(await scene.ask()) == "192.0.2.2"
            scene.resolver.update(replace(scene.network, upstreams=()))
            assert address(await scene.ask()) == "192.0.2.2"

    play(scenario)


def test_the_longest_domain_decides_who_is_asked(network: Network) -> None:
    host, corp, lab, root = (Upstream(f"10.0.0.{number}") for number in range(1, 5))

    async def scenario() -> None:
        domains = {"Corp.example.": (corp,), "lab.corp.example.": (lab, corp)}
        resolver = Scene(network, host, **domains).resolver
        assert resolver.servers("corp.example") == resolver.servers("www.corp.example") == (corp,)
        assert resolver.servers("a.b.lab.corp.example") == (lab, corp)
        assert resolver.servers("xcorp.example") == resolver.servers("") == (host,)
        rooted = Scene(network, host, **domains, **{".": (root,)}).resolver
        assert rooted.servers("xcorp.example") == rooted.servers("") == (root,)
        assert rooted.servers("corp.example") == (corp,)

    play(scenario)


def test_queries_that_wait_are_limited(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_resolver, "MAX_WAITING", 2)

    async def scenario() -> None:
        async with upstream(silent) as (mute, played):
            scene = Scene(network, mute)
            answers = await asyncio.gather(*(scene.ask() for _ in range(3)))
            assert [answer.rcode() for answer in answers] == [dns.rcode.SERVFAIL] * 3
            assert scene.resolver.counters["dns.refused_waiting"] == 1
            assert len(played.queries) == 1
            scene.resolver.close()

    play(scenario)
