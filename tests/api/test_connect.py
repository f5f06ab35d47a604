"""``/connect`` under gunicorn: the connection leaves it, whole, and nothing is answered."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proto.codec import Message
from proto.fdpass import FdChannel
from proto.messages import AttachLink, Empty, Failure
from tests.guests.waiting import wait_for

PATIENCE = 10.0


@dataclass
class Taker:
    """A supervisor that takes, or refuses, what is handed over."""

    path: Path
    answer: Message | None = field(default_factory=Empty)
    """None: it hangs up instead."""
    taken: list[tuple[Message, list[int]]] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                channel = FdChannel(listener.accept()[0])
            except OSError:
                return
            self.taken.append(channel.recv())
            if self.answer is not None:
                channel.send(self.answer)
            channel.close()

    def connection(self) -> tuple[Message, socket.socket]:
        message, (fd,) = wait_for(lambda: self.taken, PATIENCE, "a connection handed over").pop()
        return message, socket.socket(fileno=fd)


@pytest.fixture
def taker(tmp_path: Path) -> Iterator[Taker]:
    taker = Taker(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "handover.sock"))
        listener.listen()
        thread = threading.Thread(target=taker.serve, args=(listener,))
        thread.start()
        yield taker
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for _, fds in taker.taken:
        for fd in fds:
            os.close(fd)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with ``api.sock``, and a link to a runtime directory that each test sets."""
    directory = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-P", "-m", "gunicorn", "-k", "gthread", "--threads", "2", "--no-control-socket"]
    command += ["-b", f"unix:{directory}/api.sock", f"api:create_app('{directory}/run')"]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: "Listening" in (directory / "log").read_text(), PATIENCE, "gunicorn")
            yield directory
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert "Traceback" not in (directory / "log").read_text()


@pytest.fixture
def client(server: Path, taker: Taker) -> Iterator[socket.socket]:
    run = server / "run"
    run.unlink(missing_ok=True)
    run.symlink_to(taker.path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(server / "api.sock"))
        yield sock


def request(target: str = "/connect", *headers: str, method: str = "POST") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"{method} {target} HTTP/1.1", "Host: x", *headers, "")).encode()


def whole_answer(client: socket.socket) -> bytes:
    """Up to the end of the connection."""
    return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_the_connection_goes_to_the_supervisor_and_nothing_is_answered(
    client: socket.socket, taker: Taker, method: str
) -> None:
    client.sendall(request(method=method))
    message, connection = taker.connection()
    assert message == AttachLink("stream16")
    with connection:
        client.sendall(b"to the worker")
        assert connection.recv(99) == b"to the worker"
        connection.sendall(b"to the VM")
        assert client.recv(99) == b"to the VM"
    assert client.recv(99) == b"", "gunicorn holds it still"


@pytest.mark.parametrize("size", [1, 100, 5000, 100_000])
def test_bytes_behind_the_request_stay_in_order(client: socket.socket, taker: Taker, size: int) -> None:
    following = os.urandom(size)
    client.sendall(request("/connect", "Content-Length: 0") + following)
    message, connection = taker.connection()
    with connection:
        connection.settimeout(PATIENCE)
        rest = b""
        while len(message.first_bytes) + len(rest) < size:
            rest += connection.recv(1 << 20)
    assert message.first_bytes + rest == following
    assert len(message.first_bytes) <= 16384


def test_framing_and_network_may_be_asked_for(client: socket.socket, taker: Taker) -> None:
    client.sendall(request("/connect?framing=qemu&network=lab"))
    message, connection = taker.connection()
    connection.close()
    assert message == AttachLink("stream32", "lab")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (request("/connect?framing=morse", "Connection: close"), b"framing: expected qemu or nothing, got 'morse'"),
        (request("/connect", "Content-Length: 3", "Connection: close") + b"abc", b"takes no body"),
        (request("/connect", "Transfer-Encoding: chunked", "Connection: close") + b"0\r\n\r\n", b"takes no body"),
        (request("/connect", "Origin: http://evil.test", "Connection: close"), b"other sites"),
    ],
)
def test_a_wrong_request_is_answered_and_not_handed_over(
    client: socket.socket, taker: Taker, sent: bytes, reason: bytes
) -> None:
    client.sendall(sent)
    answer = whole_answer(client)
    assert answer.startswith(b"HTTP/1.1 40")
    assert reason in answer
    assert not taker.taken


def test_what_the_supervisor_refuses_is_answered_with_its_reason(client: socket.socket, taker: Taker) -> None:
    taker.answer = Failure("not-found", "no network 'lab'")
    client.sendall(request("/connect?network=lab", "Connection: close"))
    answer = whole_answer(client)
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.endswith(b"no network 'lab'\n")


def test_where_it_is_not_known_who_has_the_connection_nothing_is_answered(client: socket.socket, taker: Taker) -> None:
    taker.answer = None
    client.sendall(request())
    _, connection = taker.connection()
    connection.close()
    assert client.recv(99) == b""


def test_without_a_supervisor_the_answer_is_503(client: socket.socket, server: Path) -> None:
    (server / "run").unlink()
    client.sendall(request())
    assert client.recv(4096).startswith(b"HTTP/1.1 503")
