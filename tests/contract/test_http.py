"""gvproxy's HTTP, byte by byte: what Go's `net/http` and curl send, and what they are answered."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.contract.conftest import MAC
from tests.guests.guest import Guest
from tests.guests.service import Service

pytestmark = pytest.mark.guest

TEXT = "text/plain; charset=utf-8"
GO = "User-Agent: Go-http-client/1.1\r\n"
ZIP = "Accept-Encoding: gzip\r\n"
LEASES = f'{{"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.2":"{MAC}"}}\n'
READING = ("/services/forwarder/all", "/services/dhcp/leases", "/leases", "/services/dns/all", "/stats", "/cam")
POSTED = ("/services/forwarder/expose", "/services/forwarder/unexpose", "/services/dns/add")
RECORDS = '"Records":[{"Name":"gateway","IP":"192.168.127.1"},{"Name":"host","IP":"192.168.127.254"}],"DefaultIP":""'
ZONES = [f'{{"Name":"{name}.internal.",{RECORDS}}}' for name in ("containers", "docker")]
TEST_ZONE = (
    '{"Name":"test.internal.","Records":[{"Name":"gateway","IP":"192.168.127.1"},{"Regexp":"^a.*","IP":"1.2.3.4"}],'
    '"DefaultIP":"9.9.9.9"}'
)
LISTED_TEST_ZONE = (
    '{"Name":"test.internal.","Records":[{"Name":"gateway","IP":"192.168.127.1"},'
    '{"Name":"","IP":"1.2.3.4","Regexp":"^a.*"}],"DefaultIP":"9.9.9.9"}'
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it came."""

    status: str
    headers: dict[str, str]
    body: bytes


def send(sock: socket.socket, request: str) -> Answer:
    """Send a request as it is, and read one response by the length it says."""
    sock.sendall(request.encode())
    with sock.makefile("rb") as stream:
        status = stream.readline().decode()
        lines = itertools.takewhile(lambda line: line != b"\r\n", stream)
        headers = dict(line.decode().rstrip("\r\n").split(": ", 1) for line in lines)
        if headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(stream.readline(), 16):
                body += stream.read(size + 2)[:-2]
            assert stream.readline() == b"\r\n"
        else:
            body = b"" if request.startswith("HEAD ") else stream.read(int(headers["Content-Length"]))
    return Answer(status, headers, body)


@pytest.fixture
def sock(service: Service, guest: Guest) -> Iterator[socket.socket]:
    """A connection to the API, where the VM of the transcripts is attached."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(service.api_path))
        yield sock


def go_get(path: str, host: str = "unix") -> str:
    """As `http.Client.Get` sends it."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{GO}{ZIP}\r\n"


def go_post(path: str, body: str) -> str:
    """As `http.Client.Post` sends a `bytes.Reader` of JSON."""
    kind = "Content-Type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: unix\r\n{GO}Content-Length: {len(body)}\r\n{kind}{ZIP}\r\n{body}"


# --- what Go's net/http sends


@pytest.mark.parametrize("host", ["unix", "", "gvproxy", "192.168.127.1"])
def test_go_gets_an_answer_whatever_host_it_names(sock: socket.socket, host: str) -> None:
    """Go's `net/http` (no extra headers, HTTP/1.1 over a unix socket); `Host: ` is empty in gvforwarder's requests"""
    answer = send(sock, go_get("/leases", host))
    assert answer.status == "HTTP/1.1 200 OK\r\n"
    assert answer.body == LEASES.encode()


def test_go_reuses_its_connection(sock: socket.socket) -> None:
    """A client with `http.Transport` sends its requests one after the other over one connection."""
    assert send(sock, go_get("/services/forwarder/all")).body == b"[]\n"
    assert send(sock, go_post("/services/forwarder/unexpose", "{}")).body == b"proxy not found\n"
    assert send(sock, go_get("/nope")).body == b"404 page not found\n"
    assert send(sock, go_get("/stats")).headers["Transfer-Encoding"] == "chunked"
    assert send(sock, go_get("/cam")).body == f'{{"{MAC}":0}}\n'.encode()


def test_go_posts_chunks_where_it_does_not_know_the_length(sock: socket.socket) -> None:
    """`http.Client` sends a body of a reader that is no `bytes.Reader` in chunks."""
    head = f"POST /services/forwarder/expose HTTP/1.1\r\nHost: unix\r\n{GO}Transfer-Encoding: chunked\r\n{ZIP}\r\n"
    answer = send(sock, f"{head}4\r\njunk\r\n0\r\n\r\n")
    assert answer.body == b"invalid character 'j' looking for beginning of value\n"


def test_nc_gets_an_answer_by_http_1_0(sock: socket.socket) -> None:
    sock.sendall(b"GET /cam HTTP/1.0\r\n\r\n")
    answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert answer.endswith(f'\r\n\r\n{{"{MAC}":0}}\n'.encode())


# --- what is answered


@pytest.mark.parametrize("path", READING)
def test_json_is_sniffed_as_text_and_ends_in_a_newline(sock: socket.socket, path: str) -> None:
    """JSON successes are sniffed as `text/plain; charset=utf-8` and end in a newline"""
    answer = send(sock, go_get(path))
    assert answer.headers["Content-Type"] == TEXT
    assert "X-Content-Type-Options" not in answer.headers
    assert answer.body == json.dumps(json.loads(answer.body), separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO", "get", "X"]
)
@pytest.mark.parametrize("path", READING)
def test_get_routes_accept_any_method(sock: socket.socket, path: str, method: str) -> None:
    """GET routes accept any method"""
    answer = send(sock, f"{method} {path} HTTP/1.1\r\nHost: unix\r\n\r\n")
    assert answer.status == "HTTP/1.1 200 OK\r\n"
    assert answer.body.endswith(b"\n")


def test_clients_that_do_not_finish_are_hung_up_on_and_keep_nobody_waiting(service: Service, guest: Guest) -> None:
    """read/write timeout 10 s"""
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        for part in [b"GET /lea", b"POST /services/dns/add HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{}"] * 10:
            slow = stack.enter_context(socket.socket(socket.AF_UNIX))
            slow.connect(str(service.api_path))
            slow.sendall(part)
        assert service.get("/leases")
        assert time.monotonic() - began < 8, "somebody waited for those who do not finish"
        slow.settimeout(30)
        while slow.recv(1000):
            pass
        assert time.monotonic() - began > 9
    assert "Traceback" not in service.log_text()


def test_head_has_the_headers_of_get_and_no_body(sock: socket.socket) -> None:
    answer = send(sock, "HEAD /leases HTTP/1.1\r\nHost: unix\r\n\r\n")
    assert (answer.headers["Content-Length"], answer.body) == (str(len(LEASES)), b"")


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "TRACE", "FOO"])
def test_posting_routes_say_so(sock: socket.socket, path: str, method: str) -> None:
    """400: `post only`"""
    answer = send(sock, f"{method} {path} HTTP/1.1\r\nHost: unix\r\n\r\n")
    assert (answer.status, answer.body) == ("HTTP/1.1 400 Bad Request\r\n", b"post only\n")


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/nope", None, "404 Not Found", "404 page not found"),
        ("/", None, "404 Not Found", "404 page not found"),
        ("/cam/", None, "404 Not Found", "404 page not found"),
        ("/services/nope", None, "404 Not Found", "404 page not found"),
        ("/debug/pprof/", None, "404 Not Found", "404 page not found"),
        ("/services/forwarder/expose", "junk", "400 Bad Request", "invalid character 'j' looking for begin"),
        ("/services/forwarder/unexpose", '{"local":":1"}', "500 Internal Server Error", "proxy not found"),
        ("/services/dns/add", '{"Records":[{"IP":"x"}]}', "400 Bad Request", "invalid IP address: x"),
        ("/tunnel", None, "500 Internal Server Error", "ip is mandatory"),
    ],
)
def test_errors_are_text_with_nosniff_and_a_newline(
    sock: socket.socket, path: str, body: str | None, status: str, text: str
) -> None:
    """Errors are text/plain, `X-Content-Type-Options: nosniff`, message + newline; unknown => 404 `404 page not
    found\\n`"""
    answer = send(sock, go_get(path) if body is None else go_post(path, body))
    assert answer.status == f"HTTP/1.1 {status}\r\n"
    assert answer.headers["Content-Type"] == TEXT
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.body.decode().startswith(text)
    assert answer.body.endswith(b"\n")


def test_an_empty_success_is_200_with_length_0(sock: socket.socket) -> None:
    """empty successes are 200 with length 0"""
    forward = '{"local":"127.0.0.1:7100","remote":"192.168.127.2:80"}'
    for path in ("/services/forwarder/expose", "/services/forwarder/unexpose"):
        answer = send(sock, go_post(path, forward))
        assert answer.status == "HTTP/1.1 200 OK\r\n"
        assert answer.headers["Content-Length"] == "0"
        assert "Content-Type" not in answer.headers


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("//cam", "/cam"),
        ("/services//forwarder/all", "/services/forwarder/all"),
        ("/x/../leases?a=b&c", "/leases?a=b&c"),
        ("/./nope", "/nope"),
        ("/services", "/services/"),
        ("/services/dns", "/services/dns/"),
    ],
)
def test_unclean_paths_are_redirected(sock: socket.socket, path: str, location: str) -> None:
    """`//` and missing trailing slash => 307 with Go 1.27, 301 with older Go"""
    for method in ("GET", "POST"):
        answer = send(sock, f"{method} {path} HTTP/1.1\r\nHost: unix\r\nContent-Length: 0\r\n\r\n")
        assert answer.status == "HTTP/1.1 307 Temporary Redirect\r\n"
        assert answer.headers["Location"] == location
        if method == "GET":
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert answer.body.decode() == f'<a href="{location.replace("&", "&amp;")}">Temporary Redirect</a>.\n\n'
        else:
            assert "Content-Type" not in answer.headers
            assert answer.body == b""


# --- the transcript, with curl


def curl(service: Service, path: str, body: str | None = None) -> tuple[str, str]:
    """As gvproxy's README does it: the body, and status with content type."""
    command = ["curl", "-sS", "--unix-socket", str(service.api_path), "-w", "\n%{http_code} %{content_type}"]
    posted = [] if body is None else ["-X", "POST", "-d", body]
    done = subprocess.run(
        [*command, f"http:/unix{path}", *posted], capture_output=True, text=True, timeout=20, check=True
    )
    text, _, how = done.stdout.rpartition("\n")
    return text, how.strip()


def test_curl_as_in_the_readme_gives_the_same_answers(service: Service, guest: Guest) -> None:
    """The transcript, line by line: "Run against gvproxy with one VM attached and `-listen unix://`; status, content
    type, body (errors end in a newline)"."""
    expose, unexpose, everything = (f"/services/forwarder/{name}" for name in ("expose", "unexpose", "all"))
    assert curl(service, expose, '{"local":"127.0.0.1:2222","remote":"192.168.127.2:22"}') == ("", "200")
    with service.host.entered():
        taken = socket.create_server(("127.0.0.1", 5201))
    forward = '{"local":":6443","remote":"192.168.127.2:6443"}'
    ssh = '[{"local":"127.0.0.1:2222","remote":"192.168.127.2:22","protocol":"tcp"}]'
    with taken:
        for path, body, status, text in (
            ("/cam", None, 200, f'{{"{MAC}":0}}\n'),
            ("/leases", None, 200, LEASES),
            ("/services/dhcp/leases", None, 200, LEASES),
            ("/services/dns/all", None, 200, f"[{','.join(ZONES)}]\n"),
            (everything, None, 200, f"{ssh}\n"),
            (expose, forward, 200, ""),
            (expose, forward, 500, "proxy already running for tcp on :6443\n"),
            (
                expose,
                '{"local":":1","remote":"192.168.127.2"}',
                400,
                "address 192.168.127.2: missing port in address\n",
            ),
            (
                expose,
                '{"local":":1","remote":"192.168.127.2:1","protocol":"sctp"}',
                500,
                "unknown protocol sctp\n",
            ),
            (expose, "junk", 400, "invalid character 'j' looking for beginning of value\n"),
            (expose, None, 400, "post only\n"),
            (
                expose,
                '{"local":"127.0.0.1:5201","remote":"192.168.127.2:5201"}',
                500,
                "listen tcp 127.0.0.1:5201: bind: address already in use\n",
            ),
            (unexpose, '{"local":":6443"}', 200, ""),
            (unexpose, '{"local":":6443"}', 500, "proxy not found\n"),
            ("/services/dns/add", TEST_ZONE, 200, ""),
            ("/services/dns/all", None, 200, f"[{','.join([*ZONES, LISTED_TEST_ZONE])}]\n"),
            ("/nope", None, 404, "404 page not found\n"),
            ("/tunnel", None, 500, "ip is mandatory\n"),
            ("/tunnel?ip=192.168.127.2", None, 500, 'strconv.ParseUint: parsing "": invalid syntax\n'),
        ):
            kind = f" {TEXT}" if text else ""
            assert curl(service, path, body) == (text, f"{status}{kind}"), path
    assert curl(service, unexpose, '{"local":"127.0.0.1:2222"}') == ("", "200")
