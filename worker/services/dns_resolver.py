"""Finds the answer to a guest's query: in the cache, or from the upstreams of its domain (RFC 8767).

A query goes to the servers of the longest configured domain that its name lies in, else to the host's. Equal queries
share one resolution. The guest is answered within two seconds, before its own resolver gives up on the gateway; what
comes later still goes into the cache, for when it asks again. Where the upstreams fail, an answer whose time is over is
better than none; they are then left alone for a moment, so that not every query waits for them.

An answer is good only for the upstreams it came from: after a change of VPN or network the same name may mean another
machine, so it is asked again, and the old answer serves only where nobody has a new one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from proto.messages import Network, Upstream
from worker.services.dns import Query
from worker.services.dns_cache import Cache, Entry
from worker.services.dns_upstream import UpstreamClient, is_failure
from worker.services.dns_zones import fold

ANSWER_DEADLINE = 2.0
"""Seconds; a guest's resolver waits for five, glibc's and musl's alike."""
FAILURE_RECHECK = 5.0
"""Seconds after a failure in which a stale answer is given without asking again (RFC 8767 5, failure recheck timer)."""
MAX_WAITING = 1024
"""Queries of one VM that wait for an answer at once."""

Servers = tuple[Upstream, ...]


class Resolver:
    """The upstreams of one VM's network, and what they said. Make it on the loop it runs on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, network: Network) -> None:
        self._loop = loop
        self._cache = Cache()
        self._client = UpstreamClient()
        self._under_way: dict[tuple[bytes, Servers], asyncio.Task[bytes | None]] = {}
        self._counters = dict.fromkeys(
            ("dns.waiting", "dns.refused_waiting", "dns.cache_hits", "dns.cache_stale", "dns.shared"), 0
        )
        self.update(network)

    def update(self, network: Network) -> None:
        """The upstreams may have changed; queries under way go on with those they have."""
        self._upstreams = network.upstreams
        self._domains = {fold(domain): servers for domain, servers in network.domain_upstreams.items()}

    @property
    def counters(self) -> dict[str, int]:
        """With those of its parts."""
        return self._counters | self._cache.counters | self._client.counters

    def close(self) -> None:
        """Give up on everything under way."""
        for task in self._under_way.values():
            task.cancel()

    def servers(self, name: str) -> Servers:
        """The upstreams of a name in lower case: those of the longest domain that it lies in."""
        while True:
            servers = self._domains.get(name)
            if servers is not None:
                return servers
            if not name:
                return self._upstreams
            name = name.partition(".")[2]

    async def resolve(self, query: Query) -> bytes | None:
        """An answer, under any id; None where there is none."""
        servers = self.servers(query.name)
        known = self._cache.get(query.key, self._loop.time())
        quick = self._quick(known, servers)
        if quick is not None:
            return quick
        if self._counters["dns.waiting"] >= MAX_WAITING:
            self._counters["dns.refused_waiting"] += 1
            return None
        self._counters["dns.waiting"] += 1
        try:
            answer = await self._wait(query, servers)
        finally:
            self._counters["dns.waiting"] -= 1
        if known is not None and (answer is None or is_failure(answer)):
            known.failed_at = self._loop.time()
            return self._stale(known)
        return answer

    def _quick(self, known: Entry | None, servers: Servers) -> bytes | None:
        """What can be said without asking."""
        now = self._loop.time()
        if known is None or known.upstreams != servers:
            return None
        if known.is_fresh(now):
            self._counters["dns.cache_hits"] += 1
            return known.aged(now)
        return self._stale(known) if now < known.failed_at + FAILURE_RECHECK else None

    def _stale(self, known: Entry) -> bytes:
        self._counters["dns.cache_stale"] += 1
        return known.stale()

    async def _wait(self, query: Query, servers: Servers) -> bytes | None:
        """The upstreams' answer; None where it does not come in time."""
        key = query.key, servers
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = self._loop.create_task(self._ask(query, servers))
            task.add_done_callback(lambda _: self._under_way.pop(key))
        else:
            self._counters["dns.shared"] += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_DEADLINE):
                return await asyncio.shield(task)
        return None

    async def _ask(self, query: Query, servers: Servers) -> bytes | None:
        answer = await self._client.ask(servers, query.wire, query.question)
        if answer is not None:
            self._cache.put(query.key, answer, servers, self._loop.time())
        return answer
