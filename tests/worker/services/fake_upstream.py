"""A DNS server on loopback that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from proto.messages import Upstream

Behaviour = Callable[[bytes], list[bytes]]
"""Query -> datagrams sent back."""


def respond(query: bytes, rcode: int = 0, flags: int = 0x8180, tail: bytes = b"") -> bytes:
    """A response without records; `tail` follows the question."""
    return query[:2] + (flags | rcode).to_bytes(2, "big") + b"\0\1" + bytes(6) + query[12:] + tail


def answers(query: bytes) -> list[bytes]:
    return [respond(query)]


def silent(query: bytes) -> list[bytes]:
    return []


class FakeUpstream(asyncio.DatagramProtocol):
    """Answers as `behaviour` says; what it says may be changed."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.queries: list[tuple[bytes, int]] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.queries.append((data, addr[1]))
        for datagram in self.behaviour(data):
            self.transport.sendto(datagram, addr)


@asynccontextmanager
async def upstream(behaviour: Behaviour) -> AsyncIterator[tuple[Upstream, FakeUpstream]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: FakeUpstream(behaviour), ("127.0.0.1", 0))
    try:
        yield Upstream("127.0.0.1", transport.get_extra_info("sockname")[1]), server
    finally:
        transport.close()
