"""Passes DNS queries to the host's upstreams (RFC 1035, 5452, 7766).

The message goes on as the guest wrote it, under an id of our own and from a port of its own, and the answer must bring
back both and the same question: that is what keeps an outsider from answering first. After 300 ms of an upstream's
silence, or at once where it fails, the next one is asked as well, and the first good answer counts. A failure
(SERVFAIL, REFUSED) is kept as the answer only when no upstream has a better one. A truncated answer is asked for again
over TCP.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Sequence
from contextlib import closing

from dns.rcode import NOERROR, NXDOMAIN

from proto.messages import Upstream

PATIENCE = 5.0
"""Seconds an upstream has. The guest is not kept waiting so long (`worker/services/dns_resolver.py`)."""
HEAD_START = 0.3
"""Seconds an upstream has before the next one is asked as well."""
MAX_IN_FLIGHT = 256
"""Queries of one VM under way at once."""
MAX_MESSAGE_SIZE = 65535
_HEADER_LEN = 12

log = logging.getLogger(__name__)


class UpstreamClient:
    """Asks upstreams, in their order."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(
            ("dns.in_flight", "dns.refused_in_flight", "dns.upstream_timeouts", "dns.upstream_errors",
             "dns.upstream_mismatched", "dns.upstream_tcp"),
            0,
        )  # fmt: skip

    async def ask(self, upstreams: Sequence[Upstream], wire: bytes, question: bytes) -> bytes | None:
        """The answer to a query, under an id that is not the query's; None where no upstream gave one."""
        if self.counters["dns.in_flight"] >= MAX_IN_FLIGHT:
            self.counters["dns.refused_in_flight"] += 1
            return None
        self.counters["dns.in_flight"] += 1
        attempts: set[asyncio.Task[bytes | None]] = set()
        try:
            return await self._race(upstreams, wire, question, attempts)
        finally:
            for attempt in attempts:
                attempt.cancel()
            self.counters["dns.in_flight"] -= 1

    async def _race(
        self, upstreams: Sequence[Upstream], wire: bytes, question: bytes, attempts: set[asyncio.Task[bytes | None]]
    ) -> bytes | None:
        loop = asyncio.get_running_loop()
        waiting = list(upstreams)
        fallback: bytes | None = None
        while waiting or attempts:
            if waiting:
                attempts.add(loop.create_task(self._attempt(waiting.pop(0), wire, question)))
            done, _ = await asyncio.wait(
                attempts, timeout=HEAD_START if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            attempts -= done
            answers = [answer for answer in (attempt.result() for attempt in done) if answer is not None]
            good = next((answer for answer in answers if not is_failure(answer)), None)
            if good is not None:
                return good
            fallback = next(iter(answers), fallback)
        return fallback

    async def _attempt(self, upstream: Upstream, wire: bytes, question: bytes) -> bytes | None:
        """One upstream's answer; None where it gave none in time."""
        query = secrets.token_bytes(2) + wire[2:]
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._ask_udp(upstream, query, question)
                if answer[2] & 0x02:
                    answer = await self._ask_tcp(upstream, query, question) or answer
                return answer
        except TimeoutError:
            self.counters["dns.upstream_timeouts"] += 1
        except (OSError, ValueError) as error:
            self.counters["dns.upstream_errors"] += 1
            log.debug("DNS upstream %s: %s", upstream.address, error)
        return None

    async def _ask_udp(self, upstream: Upstream, query: bytes, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in upstream.address else socket.AF_INET
        with closing(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)) as sock:
            sock.connect((upstream.address, upstream.port))
            await loop.sock_sendall(sock, query)
            while True:
                answer = await loop.sock_recv(sock, MAX_MESSAGE_SIZE)
                if is_answer(query, question, answer):
                    return answer
                self.counters["dns.upstream_mismatched"] += 1

    async def _ask_tcp(self, upstream: Upstream, query: bytes, question: bytes) -> bytes | None:
        """The whole answer; None where the upstream does not give it over TCP."""
        self.counters["dns.upstream_tcp"] += 1
        try:
            reader, writer = await asyncio.open_connection(upstream.address, upstream.port)
        except OSError:
            return None
        try:
            writer.write(len(query).to_bytes(2, "big") + query)
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        except (OSError, EOFError):
            return None
        finally:
            writer.transport.abort()
        return answer if is_answer(query, question, answer) else None


def is_failure(answer: bytes) -> bool:
    """NOERROR and NXDOMAIN are answers; anything else is an upstream's failure."""
    return answer[3] & 0x0F not in (NOERROR, NXDOMAIN)


def is_answer(query: bytes, question: bytes, answer: bytes) -> bool:
    """Whether a message is the response to our query: id and question (RFC 5452 9.1), in any case of letters.

    An error may come without a question.
    """
    if len(answer) < _HEADER_LEN or answer[:2] != query[:2] or not answer[2] & 0x80:
        return False
    if answer[4:6] == b"\0\0":
        return is_failure(answer)
    echoed = answer[_HEADER_LEN : _HEADER_LEN + len(question)]
    return answer[4:6] == b"\0\1" and echoed.lower() == question.lower()
