"""ssh and scp from the host to a guest with a real sshd, and unix sockets of the guest carried over SSH."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.namespace import NamespaceGuest
from tests.guests.servers import UnixServer, serving
from tests.guests.service import Attach, Service
from tests.guests.sshd import SshServer, make_server, sshd

pytestmark = pytest.mark.guest

SIZE = 100_000_000
PROXY = Path(__file__).parents[1] / "guests" / "proxy_command.py"


@pytest.fixture
def server(tmp_path: Path) -> SshServer:
    return make_server(tmp_path)


@pytest.fixture
def guest(service: Service, attach: Attach) -> NamespaceGuest:
    guest = attach(service)
    guest.configure()
    return guest


@contextlib.contextmanager
def engine_api(path: Path) -> Iterator[list[str]]:
    """A docker-like HTTP API on a unix socket: ``GET /version``, and ``POST /build``, which answers at the body's end.

    Yields the bodies it got.
    """
    bodies: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(b'{"Version":"1"}\n')

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.answer(b"built\n")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    try:
        with serving(UnixServer(str(path), Handler)):
            yield bodies
    finally:
        path.unlink()


def on_host(service: Service, *argv: str) -> subprocess.CompletedProcess[str]:
    done = service.host.run(*argv, timeout=60)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{service.log_text()[-3000:]}"
    return done


def curl(service: Service, sock: Path, path: str, *more: str) -> str:
    return on_host(
        service, "curl", "-sS", "--max-time", "40", "--unix-socket", str(sock), *more, f"http://d{path}"
    ).stdout


@contextlib.contextmanager
def way_in(way: str, service: Service, guest: NamespaceGuest, sock: Path) -> Iterator[str]:
    """The option that has ssh take it."""
    proxy = f"ProxyCommand={sys.executable} {PROXY}"
    if way == "tunnel":
        yield f"{proxy} {service.api_path} {guest.lease.ip} 22"
    elif way == "port":
        with service.exposed("127.0.0.1:2222", f"{guest.lease.ip}:22", "tcp"):
            yield "Port=2222"
    else:
        with service.exposed(str(sock), f"tcp://{guest.lease.ip}:22", "unix"):
            assert sock.stat().st_mode & 0o777 == 0o600
            yield f"{proxy} {sock}"
        assert not sock.exists()


@pytest.mark.parametrize("way", ["port", "unix", "tunnel"])
def test_ssh_and_scp_of_100_mb_pass_each_way_in(
    service: Service, guest: NamespaceGuest, server: SshServer, tmp_path: Path, way: str
) -> None:
    """A forwarded port, a forwarded unix socket, and `/tunnel` on the API's unix socket, the way of podman and CRC."""
    original, copy, back = (tmp_path / name for name in ("original", "copy", "back"))
    on_host(service, "sh", "-c", f"head -c {SIZE} /dev/urandom >{original}")
    with sshd(guest, server), way_in(way, service, guest, tmp_path / "ssh.sock") as option:
        options = server.options(option)
        told = on_host(service, "ssh", *options, "root@127.0.0.1", "echo $SSH_CONNECTION; seq 1 100000")
        seen, *lines = told.stdout.splitlines()
        assert seen.split()[0::2] == ["192.168.127.1", guest.lease.ip]
        assert lines == [str(n) for n in range(1, 100001)]
        on_host(service, "scp", *options, str(original), f"root@127.0.0.1:{copy}")
        on_host(service, "scp", *options, f"root@127.0.0.1:{copy}", str(back))
        sums = on_host(service, "sha256sum", *map(str, (original, copy, back))).stdout.splitlines()
    assert len({line.split()[0] for line in sums}) == 1, sums


def test_what_follows_the_request_for_a_tunnel_at_once_reaches_the_guest(
    service: Service, guest: NamespaceGuest
) -> None:
    with guest.namespace.entered():
        listener = socket.create_server((guest.lease.ip, 0))
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(service.api_path))
        port = listener.getsockname()[1]
        client.sendall(f"GET /tunnel?ip={guest.lease.ip}&port={port} HTTP/1.1\r\nHost: unix\r\n\r\nearly".encode())
        connection, _ = listener.accept()
        with connection:
            client.sendall(b" and late")
            client.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: connection.recv(100), b"")) == b"early and late"
            connection.sendall(b"answer")
        assert b"".join(iter(lambda: client.recv(100), b"")) == b"OKanswer"


def test_an_api_on_a_unix_socket_of_the_guest_is_reached_over_ssh(
    service: Service, attach: Attach, guest: NamespaceGuest, server: SshServer, tmp_path: Path
) -> None:
    """As docker's contexts: the SSH connection is made when first used, shared by all, and made again after a reboot"""
    inside, sock = tmp_path / "engine.sock", tmp_path / "docker.sock"
    remote = f"ssh-tunnel://root@{guest.lease.ip}:22{inside}?key={server.key}"
    with engine_api(inside) as bodies, service.exposed(str(sock), remote, "unix"):
        assert sock.stat().st_mode & 0o777 == 0o600
        with sshd(guest, server):
            assert curl(service, sock, "/version") == '{"Version":"1"}\n'
            assert curl(service, sock, "/build", "-d", "x" * 3_000) == "built\n"
            assert bodies == ["x" * 3_000]
            many = " & ".join([f"curl -sS --unix-socket {sock} http://d/version"] * 20)
            assert on_host(service, "sh", "-c", f"({many} & wait) 2>&1").stdout == '{"Version":"1"}\n' * 20
            assert (tmp_path / "sshd.log").read_text().count("Accepted publickey") == 1
        with sshd(guest, server):  # the first has ended with its connections
            assert curl(service, sock, "/version") == '{"Version":"1"}\n'
        guest.close()
        rebooted = attach(service, guest.mac)
        waiting = service.host.start("curl", "-sSf", "--unix-socket", str(sock), "http://d/version")
        assert rebooted.configure().ip == guest.lease.ip
        with sshd(rebooted, server):
            assert waiting.wait(30) == 0
            assert curl(service, sock, "/version") == '{"Version":"1"}\n'
