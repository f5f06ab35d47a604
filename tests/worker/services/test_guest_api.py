"""The API inside a VM's network, over a socket pair, with a supervisor played by the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import RequestFailed, RequestTimeout
from proto.guest_requests import GuestExpose, GuestUnexpose, ListGuestForwards
from proto.messages import Empty, Forward, Forwards
from worker.services import guest_api
from worker.services.guest_api import MAX_BODY, MAX_HEAD, GuestApi

GUEST = "192.168.127.2"
CHUNKED = b"POST /services/forwarder/expose HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
Ask = Callable[[Any, float], Awaitable[Any]]


class Supervisor:
    """Notes what it is asked, and answers what it is told to."""

    def __init__(self, answer: Any = None) -> None:
        self.asked: list[Any] = []
        self.answer = answer

    async def ask(self, message: Any, timeout: float) -> Any:
        self.asked.append(message)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or Empty()


def serve(sent: bytes, supervisor: Supervisor | None = None, hang_up: bool = True) -> tuple[str, GuestApi]:
    """Everything that is answered to these bytes, until the connection ends."""

    async def scenario() -> tuple[str, GuestApi]:
        ours, theirs = socket.socketpair()
        api = GuestApi("vm1", (supervisor or Supervisor()).ask)
        reader, writer = await asyncio.open_unix_connection(sock=theirs, limit=MAX_HEAD)
        guest, to_api = await asyncio.open_unix_connection(sock=ours)
        to_api.write(sent)
        if hang_up:
            to_api.write_eof()

        async def run() -> None:
            try:
                await api.serve(reader, writer, GUEST)
            except (OSError, EOFError):
                pass
            finally:
                writer.close()

        serving = asyncio.ensure_future(run())
        heard = await asyncio.wait_for(guest.read(), 10)
        await serving
        to_api.close()
        return heard.decode(), api

    return asyncio.run(scenario())


def post(path: str, body: str) -> bytes:
    return f"POST /services/forwarder/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_requests_are_answered_one_after_the_other_on_one_connection() -> None:
    forwards = Forwards((Forward(":8", "192.168.127.2:8", vm_id="vm1"), Forward(":7", "192.168.127.2:7", "udp")))
    supervisor = Supervisor(forwards)
    heard, api = serve(b"GET /services/forwarder/all HTTP/1.1\r\nHost: x\r\n\r\n" * 2, supervisor)
    body = (
        '[{"local":":7","remote":"192.168.127.2:7","protocol":"udp"},'
        '{"local":":8","remote":"192.168.127.2:8","protocol":"tcp"}]\n'
    )
    assert heard.count("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n") == 2
    assert heard.endswith(f"\r\nContent-Length: {len(body)}\r\n\r\n{body}")
    assert supervisor.asked == [ListGuestForwards("vm1")] * 2
    assert api.counters["guest_api.requests"] == 2


def test_expose_and_unexpose_reach_the_supervisor_with_the_callers_address() -> None:
    supervisor = Supervisor()
    expose = post("expose", '{"local":":80","remote":":8080"}')
    heard, _ = serve(expose + post("unexpose", '{"local":":80"}'), supervisor)
    assert supervisor.asked == [
        GuestExpose("vm1", ":80", f"{GUEST}:8080", "tcp"),
        GuestUnexpose("vm1", ":80", "tcp"),
    ]
    assert heard.count("HTTP/1.1 200 OK\r\nDate: ") == 2
    assert heard.count("\r\nContent-Length: 0\r\n\r\n") == 2


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404, "404 page not found"),
        (b"GET /stats HTTP/1.1\r\n\r\n", 404, "404 page not found"),
        (b"GET /services/forwarder/expose HTTP/1.1\r\n\r\n", 400, "post only"),
        (post("expose", ""), 400, "EOF"),
        (post("expose", "[]"), 400, "json: cannot unmarshal array into Go value of type types.ExposeRequest"),
        (post("expose", '{"local":":1","remote":"a"}'), 400, "address a: missing port in address"),
    ],
)
def test_errors_are_gvproxys(sent: bytes, status: int, text: str) -> None:
    heard, _ = serve(sent)
    assert heard.startswith(f"HTTP/1.1 {status} ")
    assert "\r\nX-Content-Type-Options: nosniff\r\n" in heard
    assert heard.endswith(f"\r\n\r\n{text}\n")


def test_a_refusal_is_500_with_its_sentence_and_silence_is_503() -> None:
    refused = Supervisor(RequestFailed.because("conflict", "proxy already running for tcp on :1"))
    heard, _ = serve(post("expose", '{"local":":1","remote":":1"}'), refused)
    assert heard.startswith("HTTP/1.1 500 ")
    assert heard.endswith("\r\n\r\nproxy already running for tcp on :1\n")
    heard, _ = serve(post("unexpose", '{"local":":1"}'), Supervisor(RequestTimeout("late")))
    assert heard.startswith("HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
        (CHUNKED + b"-1\r\n", 400),
        (CHUNKED + b"\r\n", 400),
        (CHUNKED + b"fffffffff\r\n", 400),
        (CHUNKED + b"2\r\nabc\r\n", 400),
        (CHUNKED + b"%x\r\n" % (MAX_BODY + 1), 413),
        (CHUNKED + b"1\r\na\r\n%x\r\n" % MAX_BODY, 413),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * 16, 431),
        (CHUNKED + b"1;" + b"a" * (MAX_HEAD + 10), 431),
        (b"GET /" + b"a" * (MAX_HEAD + 10), 431),
    ],
)
def test_what_is_not_taken_ends_the_connection(sent: bytes, status: int) -> None:
    heard, api = serve(sent, hang_up=False)
    assert heard.startswith(f"HTTP/1.1 {status} ")
    assert "\r\nConnection: close\r\n" in heard
    assert api.counters["guest_api.bad_requests"] == 1


def test_a_body_at_the_limit_is_taken_and_may_be_waited_for() -> None:
    body = '{"local":":1","remote":":1"}'.ljust(MAX_BODY)
    sent = post("expose", body).replace(b"Host: x\r\n", b"Expect: 100-continue\r\nConnection: close\r\n")
    heard, _ = serve(sent, hang_up=False)
    assert heard.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_a_body_may_come_in_chunks_as_go_sends_one_of_unknown_length() -> None:
    supervisor = Supervisor()
    body = b'c;more="x"\r\n{"local":":1\r\n10\r\n","remote":":1"}\r\n0\r\ntrailer: x\r\n\r\n'
    heard, _ = serve(CHUNKED + body + post("unexpose", '{"local":":1"}'), supervisor)
    assert heard.count("HTTP/1.1 200 OK\r\n") == 2
    assert supervisor.asked[0] == GuestExpose("vm1", ":1", f"{GUEST}:1", "tcp")


@pytest.mark.parametrize("method", ["FOO", "get", "M-SEARCH", "X"])
def test_a_method_may_be_any_word(method: str) -> None:
    heard, _ = serve(f"{method} /services/forwarder/all HTTP/1.1\r\n\r\n".encode(), Supervisor(Forwards(())))
    assert heard.endswith("\r\n\r\n[]\n")


def test_head_has_no_body() -> None:
    heard, _ = serve(b"HEAD / HTTP/1.0\r\n\r\n", hang_up=False)
    assert heard.endswith("\r\n\r\n")
    assert "\r\nContent-Length: 19\r\n" in heard


def test_a_guest_that_says_nothing_or_half_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_api, "TIMEOUT", 0.05)
    for sent in (b"", b"GET / HT", post("expose", "{}")[:-1]):
        assert serve(sent, hang_up=False)[0] == ""


@given(st.binary(max_size=300))
def test_whatever_a_guest_sends_the_connection_ends_without_a_fault(sent: bytes) -> None:
    serve(sent)
    serve(b"POST /services/forwarder/expose HTTP/1.1\r\n" + sent + b"\r\n\r\n" + sent)
    serve(CHUNKED + b"1" + sent + b"\r\n" + sent)
