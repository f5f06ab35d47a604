"""The API inside a VM's network: ``http://GATEWAY/services/forwarder/{all,expose,unexpose}``, as gvproxy serves it.

HTTP/1.1 (RFC 9112), as much of it as clients of these routes use: requests with a body of a length that is told, in
chunks, or without one, one after the other on a connection. Podman in the VM opens the ports of its containers this
way.

A worker serves it to its own guest: a hostile one can keep nobody else's request waiting. What a guest may ask for, the
supervisor decides (`supervisor.guest_forwards`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from proto.errors import ChannelError, RequestFailed
from proto.forwarder import ALL, EXPOSE, UNEXPOSE, list_body, read_expose, read_unexpose
from proto.golang import GoError
from proto.guest_requests import GuestExpose, GuestUnexpose, ListGuestForwards
from proto.messages import Forwards

HTTP_PORT = 80
MAX_HEAD = 16 << 10
MAX_BODY = 64 << 10
MAX_TRAILERS = 16
TIMEOUT = 10.0
"""s for a request to arrive, for its answer to be taken, and between two requests; gvproxy's too."""
PATIENCE = 5.0
"""s for the supervisor, which may have a name to look up."""
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}) (\S+) HTTP/1\.([01])")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;[^\n]*)?\r\n")
_END = b"\r\n\r\n"

AskSupervisor = Callable[[Any, float], Awaitable[Any]]
"""(message, timeout) -> answer; raises ChannelError."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the guest's."""

    method: str
    path: str
    body: bytes
    lasts: bool
    """Another one may follow."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and what is sent with it."""

    status: int = 200
    body: bytes = b""

    @classmethod
    def error(cls, status: int, text: str) -> Answer:
        """Go's `http.Error`."""
        return cls(status, f"{text}\n".encode())


class BadRequest(Exception):
    """Not HTTP, or more than is taken; `answer` is the last thing the guest hears."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.answer = Answer.error(status, status.phrase)


class GuestApi:
    """Serves connections of one VM."""

    def __init__(self, vm_id: str, ask_supervisor: AskSupervisor) -> None:
        self._vm_id = vm_id
        self._ask = ask_supervisor
        self.counters = dict.fromkeys(("guest_api.requests", "guest_api.bad_requests"), 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: str) -> None:
        """Answer requests from this address until there are no more. Raises OSError and EOFError at the end."""
        lasts = True
        while lasts:
            try:
                async with asyncio.timeout(TIMEOUT):
                    request = await read_request(reader, writer)
                answer, lasts = await self._answer(request, client), request.lasts
                with_body = request.method != "HEAD"
            except BadRequest as error:
                self.counters["guest_api.bad_requests"] += 1
                answer, lasts, with_body = error.answer, False, True
            writer.write(_wire(answer, lasts, with_body))
            async with asyncio.timeout(TIMEOUT):
                await writer.drain()

    async def _answer(self, request: Request, client: str) -> Answer:
        self.counters["guest_api.requests"] += 1
        try:
            if request.path == ALL:
                found = await self._ask(ListGuestForwards(self._vm_id), PATIENCE)
                assert isinstance(found, Forwards), found
                return Answer(body=list_body(found.forwards).encode())
            if request.path == EXPOSE:
                wanted = read_expose(request.method, request.body, client)
                await self._ask(GuestExpose(self._vm_id, *wanted), PATIENCE)
            elif request.path == UNEXPOSE:
                await self._ask(GuestUnexpose(self._vm_id, *read_unexpose(request.method, request.body)), PATIENCE)
            else:
                return Answer.error(404, "404 page not found")
        except GoError as error:
            return Answer.error(400, str(error))
        except RequestFailed as error:
            return Answer.error(500, error.failure.message)
        except ChannelError:
            return Answer.error(503, "the service does not answer; try again in a moment")
        return Answer()


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """The next request. Raises BadRequest, and EOFError where there is none."""
    try:
        head = await reader.readuntil(_END)
    except asyncio.LimitOverrunError as error:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from error
    first, *lines = head.removesuffix(_END).split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = _body_length(fields)
    if fields.get(b"expect", b"").lower() == b"100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await (_read_chunks(reader) if length is None else reader.readexactly(length))
    lasts = line[3] == b"1" and fields.get(b"connection", b"").lower() != b"close"
    path = line[2].partition(b"?")[0].decode("latin-1")
    return Request(line[1].decode(), path, body, lasts)


def _body_length(fields: Mapping[bytes, bytes]) -> int | None:
    """Of a body; None: it comes in chunks. Raises BadRequest."""
    coding, length = fields.get(b"transfer-encoding", b""), fields.get(b"content-length", b"0")
    if coding and coding.lower() != b"chunked":
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED)
    if not length.isdigit() or (coding and b"content-length" in fields):  # RFC 9112 6.3: one of them is a lie
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    if len(length) > len(str(MAX_BODY)) or int(length) > MAX_BODY:
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return None if coding else int(length)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body (RFC 9112 7.1); its trailer is dropped. Raises BadRequest and EOFError."""
    body = b""
    while size := await _chunk_size(reader):
        if size > MAX_BODY - len(body):
            raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise BadRequest(HTTPStatus.BAD_REQUEST)
    for _ in range(MAX_TRAILERS):
        if await _read_line(reader) == b"\r\n":
            return body
    raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    line = _CHUNK_LINE.fullmatch(await _read_line(reader))
    if line is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    return int(line[1], 16)


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError as error:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from error


def _wire(answer: Answer, lasts: bool, with_body: bool) -> bytes:
    head = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    if answer.body:
        head.append("Content-Type: text/plain; charset=utf-8")
    if answer.status != HTTPStatus.OK:
        head.append("X-Content-Type-Options: nosniff")
    head += [f"Date: {formatdate(usegmt=True)}", f"Content-Length: {len(answer.body)}"]
    if not lasts:
        head.append("Connection: close")
    return "\r\n".join(head).encode() + _END + (answer.body if with_body else b"")
