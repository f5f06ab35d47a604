"""gvproxy's forwards over SSH, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c), to a real sshd."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import socket
import socketserver
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests.guest import build_probe
from tests.guests.gvproxy import MAC, Gvproxy
from tests.guests.host import make_host
from tests.guests.namespace import Namespace, NamespaceGuest
from tests.guests.servers import UnixServer, serving
from tests.guests.sshd import SshServer, make_server, sshd

pytestmark = pytest.mark.guest

VM = "192.168.127.2"
PROXY = Path(__file__).parents[1] / "guests" / "proxy_command.py"
SIZE = 10_000_000


@dataclass
class Scene:
    """gvproxy with a socket that leads to one in its VM."""

    host: Namespace
    running: Gvproxy
    guest: NamespaceGuest
    server: SshServer
    inside: Path
    """The VM's socket: it answers at the end of what it is sent."""

    @property
    def outside(self) -> Path:
        return self.running.directory / "outside"

    def accepted(self) -> int:
        """Logins since sshd was started."""
        return (self.running.directory / "sshd.log").read_text().count("Accepted publickey")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("ssh")
    server, inside = make_server(directory), directory / "inside"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "outside"))
    flags = (
        *(
            "-listen",
            "unix://DIR/api.sock",
            "-listen",
            "tcp://127.0.0.1:7779",
            "-ssh-port",
            "-1",
            "-forward-sock",
            "unix://DIR/outside",
        ),
        *("-forward-dest", str(inside), "-forward-user", "root", "-forward-identity", str(server.key)),
    )
    with echo(inside), make_host() as host, Gvproxy(host, directory, *flags) as running:
        url = f"unix://{running.api}/connect"
        with contextlib.closing(NamespaceGuest(directory, url, MAC, build_probe(directory), host)) as guest:
            assert guest.configure().ip == VM
            yield Scene(host, running, guest, server, inside)


@contextlib.contextmanager
def echo(path: Path) -> Iterator[None]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"heard " + self.rfile.read())

    with serving(UnixServer(str(path), Handler)):
        yield


@contextlib.contextmanager
def asking(path: Path, question: bytes) -> Iterator[socket.socket]:
    """A client that has said all it will."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        yield client


def answer(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_socket_of_the_host_leads_to_one_in_the_vm(scene: Scene) -> None:
    """SSH forward: local socket created first (old file removed, mode 0600, scheme unix), then sshd on deviceIP:22;
    auth: identity file; per client one direct-streamlocal channel to dest; half-close kept"""
    assert scene.outside.stat().st_mode & 0o777 == 0o600
    with sshd(scene.guest, scene.server), contextlib.ExitStack() as stack:
        questions = [f"question {number}".encode() * 10_000 for number in range(10)]
        clients = [stack.enter_context(asking(scene.outside, question)) for question in questions]
        assert [answer(client) for client in clients] == [b"heard " + question for question in questions]
        assert scene.accepted() == 1


@pytest.mark.parametrize("address", ["127.0.0.1:7779", "DIR/api.sock"], ids=["tcp", "unix"])
def test_ssh_passes_a_tunnel_of_every_listen_address(scene: Scene, address: str) -> None:
    """`/tunnel?ip=&port=` on `-listen tcp://host:port` and `unix:///path`; ssh-over-vsock's way; half-close kept"""
    proxy = f"{sys.executable} {PROXY} {address.replace('DIR', str(scene.running.directory))} {VM} 22"
    options = scene.server.options(f"ProxyCommand={proxy}")
    command = f"head -c {SIZE} /dev/zero | ssh {shlex.join(options)} root@guest sha256sum"
    with sshd(scene.guest, scene.server):
        done = scene.host.run("sh", "-c", command, timeout=60)
        seen = scene.host.run("ssh", *options, "root@guest", "echo $SSH_CONNECTION", timeout=60)
    assert done.stdout.split() == [hashlib.sha256(bytes(SIZE)).hexdigest(), "-"], done.stderr
    assert seen.stdout.split()[0::2] == ["192.168.127.1", VM], seen.stderr


def test_a_vm_that_has_no_sshd_yet_is_waited_for(scene: Scene) -> None:
    """sshd on deviceIP:22 tried up to 60 times (backoff 0.1 => 1 s); final failure ends gvproxy; better: never"""
    with asking(scene.outside, b"early") as client, sshd(scene.guest, scene.server):
        assert answer(client) == b"heard early"
    assert scene.running.process.poll() is None


def test_a_dead_link_is_dialled_again(scene: Scene) -> None:
    """dead link re-dialled"""
    for _ in range(2):
        with sshd(scene.guest, scene.server), asking(scene.outside, b"again") as client:
            assert answer(client) == b"heard again"
            assert scene.accepted() == 1


@pytest.mark.parametrize(("more", "heard"), [("", b"heard who"), ("&secure=true", b"")])
def test_a_host_key_is_looked_at_where_that_is_asked_for(scene: Scene, tmp_path: Path, more: str, heard: bytes) -> None:
    """host key unchecked unless `?secure=true`"""
    local = str(tmp_path / "s")
    remote = f"ssh-tunnel://root@{VM}:22{scene.inside}?key={scene.server.key}{more}"
    body = {"local": local, "remote": remote, "protocol": "unix"}
    assert scene.running.request("POST", "/services/forwarder/expose", body) == (200, "")
    with sshd(scene.guest, scene.server), asking(Path(local), b"who") as client:
        try:
            got = answer(client)
        except ConnectionResetError:
            got = b""
    assert got == heard
    assert scene.running.request("POST", "/services/forwarder/unexpose", body) == (200, "")
