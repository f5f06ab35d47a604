"""URLs of the host, and the links they become."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import endpoint
from agent.endpoint import UPGRADE, Endpoint, Link, parse

REQUEST = b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"
"""As gvforwarder was seen to send it."""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        listener.settimeout(5)
        yield listener


def received(listener: socket.socket, size: int) -> bytes:
    peer, _ = listener.accept()
    with peer:
        peer.settimeout(5)
        return peer.recv(size, socket.MSG_WAITALL)


@pytest.mark.parametrize(
    ("url", "framing", "lasts"),
    [
        ("unix:///run/moorage/qemu.sock", "stream32", True),
        ("unix:///run/moorage/api.sock/connect", "stream16", True),
        ("tcp://127.0.0.1:9000", "stream32", True),
        ("tcp://[::1]:9000/connect", "stream16", True),
        ("vsock://2:1024/connect", "stream16", True),
        ("vsock://2:1024", "stream16", True),
        ("vsock://:4294967294/connect", "stream16", True),
        ("stdio:cat", "stream16", True),
        ("stdio:", "stream16", False),
    ],
)
def test_each_kind_of_host_has_its_framing(
    url: str, framing: str, lasts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: False)
    parsed = parse(url)
    assert isinstance(parsed, Endpoint)
    assert (parsed.url, parsed.framing, parsed.lasts) == (url, framing, lasts)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("unix://relative", "expected"),
        ("unix:///connect", "expected"),
        ("unix:", "expected"),
        ("tcp://host", "expected"),
        ("tcp://host:99999", "[Pp]ort"),
        ("tcp://host:80/other", "expected"),
        ("http://host:80", "expected"),
        ("vsock://2:1024/other", "expected"),
        ("vsock://2", "expected"),
        ("vsock://two:1024/connect", "expected"),
        ("vsock://2:4294967295/connect", "below 4294967295"),
        ("stdio:'unbalanced", "quotation"),
        ("", "expected"),
    ],
)
def test_a_bad_url_is_quoted_with_what_was_expected(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as raised:
        parse(url)
    assert repr(url) in str(raised.value)


def test_connect_asks_to_become_a_link_in_gvforwarders_very_bytes(listener: socket.socket) -> None:
    assert UPGRADE == REQUEST
    with parse(f"unix://{listener.getsockname()}/connect").connect() as link:
        os.write(link.outgoing, b"frames")
        assert received(listener, len(REQUEST) + 6) == REQUEST + b"frames"


def test_without_connect_nothing_is_said_before_the_frames(listener: socket.socket) -> None:
    with parse(f"unix://{listener.getsockname()}").connect() as link:
        os.write(link.outgoing, b"frames")
        assert received(listener, 6) == b"frames"


def test_tcp_is_asked_to_become_a_link_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        with parse(f"tcp://127.0.0.1:{listener.getsockname()[1]}/connect").connect():
            assert received(listener, len(REQUEST)) == REQUEST


def test_nobody_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parse(f"unix://{tmp_path}/nobody").connect()


class FakeVsock:
    """A socket of a family that this machine need not have."""

    error: OSError | None = None

    def __init__(self, family: int, kind: int) -> None:
        assert (family, kind) == (socket.AF_VSOCK, socket.SOCK_STREAM)
        self.address: object = None
        self.sent = b""

    def settimeout(self, timeout: float) -> None:
        assert timeout > 0

    def connect(self, address: tuple[int, int]) -> None:
        assert address == (2, 1024)
        if self.error is not None:
            raise self.error

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def fileno(self) -> int:
        return 99

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("url", ["vsock://2:1024/connect", "vsock://:1024/connect"])
def test_vsock_dials_the_host(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", FakeVsock)
    with parse(url).connect() as link:
        assert (link.incoming, link.outgoing) == (99, 99)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(19, "No such device"), "does the VM have a vsock device"),
        (ConnectionResetError(104, "Connection reset by peer"), "nobody listens there on the host"),
    ],
)
def test_vsock_says_what_may_be_missing(error: OSError, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", FakeVsock)
    monkeypatch.setattr(FakeVsock, "error", error)
    with pytest.raises(OSError, match=remedy) as raised:
        parse("vsock://2:1024/connect").connect()
    assert raised.value.errno == error.errno


def read(link: Link) -> bytes:
    data = b""
    while piece := os.read(link.incoming, 100):
        data += piece
    return data


@pytest.mark.parametrize(
    "url",
    [
        "stdio:{python} -c 'import sys; print(*sys.argv[1:])' -listen-stdio=accept '-a b=c d'",
        "stdio:{python} -c 'import sys; print(*sys.argv[1:])'?listen-stdio=accept&a%20b=c+d",
    ],
)
def test_a_programs_arguments_come_as_words_or_as_a_query(url: str) -> None:
    with parse(url.format(python=sys.executable)).connect() as link:
        assert read(link) == b"-listen-stdio=accept -a b=c d\n"


def test_a_program_is_spoken_to_both_ways_and_ends_with_the_link() -> None:
    with parse("stdio:cat").connect() as link:
        os.write(link.outgoing, b"there and back")
        assert os.read(link.incoming, 100) == b"there and back"


def test_a_program_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "END_TIMEOUT", 0.1)
    with parse("stdio:sleep 100").connect():
        pass


def test_a_terminal_is_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    with pytest.raises(ValueError, match="are a terminal"):
        parse("stdio:")
