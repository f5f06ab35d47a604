"""What gvproxy's clients do with Go's own net/http, over a unix socket, TCP and from inside the VM.

Debian's gccgo compiles ``goclient/main.go``: the same net/http as that of the usual compiler, at half its size.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dpkt
import pytest

from tests.guests.guest import build_probe
from tests.guests.gvproxy import MAC, Gvproxy
from tests.guests.host import make_host
from tests.guests.namespace import Namespace, NamespaceGuest
from tests.guests.servers import tcp_server

pytestmark = pytest.mark.guest

SOURCE = Path(__file__).parent / "goclient" / "main.go"
TCP_API = "127.0.0.1:7779"
VM = "192.168.127.2"
FORWARDER = "http://gvproxy/services/forwarder"
EXPOSED = {"local": "127.0.0.1:6443", "remote": f"{VM}:6443", "protocol": "tcp"}


class GoClient:
    """A running client: one transport, and so one pool of connections."""

    def __init__(self, program: Path, where: Namespace, network: str, address: str) -> None:
        self._process = subprocess.Popen(
            where.command([str(program), network, address]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, method: str, url: str, body: object = None, **more: object) -> dict[str, Any]:
        """A request's answer; see ``goclient/main.go``. `body` is sent as JSON, text as it is."""
        text = body if isinstance(body, str) else json.dumps(body) if body is not None else ""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"method": method, "url": url, "body": text, **more}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def take_over(self, url: str, send: bytes, read: int) -> bytes:
        """Write a request, then `send`, to a connection; the first `read` bytes that come back."""
        answer = self.ask("POST", url, raw=True, send=base64.b64encode(send).decode(), read=read)
        assert not answer["Error"], answer
        return base64.b64decode(answer["Bytes"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@dataclass
class Scene:
    program: Path
    host: Namespace
    running: Gvproxy
    guest: NamespaceGuest
    echo_port: int
    """Of a server in the VM."""

    def client(self, network: str) -> GoClient:
        """`network`: ``unix``, ``services`` (the socket without /connect) or ``tcp``."""
        address = {"unix": self.running.api, "services": self.running.directory / "services.sock", "tcp": TCP_API}
        return GoClient(self.program, self.host, "tcp" if network == "tcp" else "unix", str(address[network]))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """gvproxy and a VM that echoes on a port."""
    if shutil.which("gccgo") is None:
        pytest.skip("not installed: gccgo (make packages)")
    directory = tmp_path_factory.mktemp("go")
    program = directory / "goclient"
    subprocess.run(["gccgo", "-O1", "-o", program, SOURCE], check=True)
    flags = ("-listen", "unix://DIR/api.sock", "-listen", f"tcp://{TCP_API}", "-services", "unix://DIR/services.sock")
    with make_host() as host, Gvproxy(host, directory, *flags, "-ssh-port", "-1") as running:
        url = f"unix://{running.api}/connect"
        with contextlib.closing(NamespaceGuest(directory, url, MAC, build_probe(directory), host)) as guest:
            assert guest.configure().ip == VM
            with tcp_server(guest.namespace, echo, VM) as port:
                yield Scene(program, host, running, guest, port)


def echo(connection: socket.socket) -> None:
    for block in iter(lambda: connection.recv(65536), b""):
        connection.sendall(block)


@pytest.fixture(scope="module", params=["unix", "services", "tcp"])
def client(scene: Scene, request: pytest.FixtureRequest) -> Iterator[GoClient]:
    with scene.client(request.param) as client:
        yield client


def brief(answer: dict[str, Any]) -> tuple[int, str]:
    assert not answer["Error"], answer
    return answer["Status"], answer["Body"]


def test_a_port_is_exposed_listed_and_unexposed(client: GoClient) -> None:
    """POST expose: 200 empty; all: [{"local","remote","protocol"}]; POST unexpose: 200 empty"""
    for more in ({}, {"chunked": True}):
        assert brief(client.ask("POST", f"{FORWARDER}/expose", EXPOSED, **more)) == (200, "")
        listed = client.ask("GET", f"{FORWARDER}/all")
        assert json.loads(brief(listed)[1]) == [EXPOSED]
        assert listed["Type"] == "text/plain; charset=utf-8"
        assert brief(client.ask("POST", f"{FORWARDER}/unexpose", EXPOSED, **more)) == (200, "")
    assert brief(client.ask("GET", f"{FORWARDER}/all")) == (200, "[]\n")


def test_an_errors_text_is_the_trimmed_body(client: GoClient) -> None:
    """non-200 => error text = trimmed body; callers look for "proxy already running" """
    assert brief(client.ask("POST", f"{FORWARDER}/expose", EXPOSED)) == (200, "")
    again = brief(client.ask("POST", f"{FORWARDER}/expose", EXPOSED))
    assert again == (500, "proxy already running for tcp on 127.0.0.1:6443\n")
    assert brief(client.ask("POST", f"{FORWARDER}/unexpose", EXPOSED)) == (200, "")
    assert brief(client.ask("POST", f"{FORWARDER}/unexpose", EXPOSED)) == (500, "proxy not found\n")
    assert brief(client.ask("POST", f"{FORWARDER}/expose", "")) == (400, "EOF\n")
    assert brief(client.ask("PUT", f"{FORWARDER}/expose", EXPOSED)) == (400, "post only\n")
    assert brief(client.ask("GET", "http://gvproxy/nope")) == (404, "404 page not found\n")


def test_a_connection_serves_many_requests(client: GoClient) -> None:
    """net/http keeps its connection, also after errors and empty answers"""
    client.ask("GET", "http://gvproxy/leases")
    for method, url, body in (
        ("GET", "http://gvproxy/stats", None),
        ("GET", "http://gvproxy/cam", None),
        ("POST", f"{FORWARDER}/unexpose", EXPOSED),
        ("HEAD", f"{FORWARDER}/all", None),
        ("POST", f"{FORWARDER}/expose", "junk"),
        ("GET", "http://gvproxy/services/dns/all", None),
    ):
        answer = client.ask(method, url, body)
        assert (answer["Error"], answer["Reused"]) == ("", True), (url, answer)


def test_many_requests_run_at_once(client: GoClient) -> None:
    """more at once than the API has threads"""
    assert brief(client.ask("GET", "http://gvproxy/services/dhcp/leases", parallel=50))[0] == 200


def test_a_path_with_two_slashes_is_followed_to_its_place(client: GoClient) -> None:
    """`//` => redirect, which net/http follows"""
    assert brief(client.ask("GET", "http://gvproxy//services//forwarder/all")) == (200, "[]\n")


def test_a_dns_zone_is_added_and_listed(scene: Scene) -> None:
    """POST dns/add: 200; listed as [{"Name","Records":[{"Name","IP"[,"Regexp"]}],"DefaultIP"}]"""
    by_name, by_pattern = {"Name": "api", "IP": "192.168.127.2"}, {"Name": "", "IP": "1.2.3.4", "Regexp": "^a.*"}
    zone = {"Name": "go.internal.", "DefaultIP": "9.9.9.9"}
    added = zone | {"Records": [by_name | {"Regexp": None}, by_pattern]}  # null: a pointer of Go's without omitempty
    with scene.client("unix") as client:
        assert brief(client.ask("POST", "http://gvproxy/services/dns/add", added)) == (200, "")
        listed = json.loads(brief(client.ask("GET", "http://gvproxy/services/dns/all"))[1])
    assert zone | {"Records": [by_name, by_pattern]} in listed


@pytest.mark.parametrize("network", ["unix", "tcp"])
def test_a_tunnel_is_a_raw_connection_after_ok(scene: Scene, network: str) -> None:
    """/tunnel?ip=&port=: raw `OK` (2 bytes, no HTTP status), then bytes"""
    with scene.client(network) as client:
        for size in (5, 100_000):
            sent = bytes(range(256)) * (size // 256 + 1)
            got = client.take_over(f"/tunnel?ip={VM}&port={scene.echo_port}", sent, 2 + len(sent))
            assert got == b"OK" + sent


def test_connect_is_a_link_at_once(scene: Scene) -> None:
    """/connect: no response bytes at all; frames follow at once (u16 LE), also those behind the request"""
    asker = bytes.fromhex("5a94efe40c99")
    arp = dpkt.arp.ARP(sha=asker, spa=bytes((192, 168, 127, 99)), tpa=bytes((192, 168, 127, 1)))
    frame = bytes(dpkt.ethernet.Ethernet(src=asker, dst=b"\xff" * 6, type=dpkt.ethernet.ETH_TYPE_ARP, data=arp))
    with scene.client("unix") as client:
        got = client.take_over("/connect", len(frame).to_bytes(2, "little") + frame, 2 + len(frame))
    assert int.from_bytes(got[:2], "little") == len(frame)
    reply = dpkt.ethernet.Ethernet(got[2:])
    assert (reply.dst, reply.data.op, reply.data.spa) == (asker, dpkt.arp.ARP_OP_REPLY, arp.tpa)


def test_from_inside_the_vm_ports_are_exposed_by_name(scene: Scene) -> None:
    """Inside the network http://gatewayIP:80 serves exactly /services/forwarder/{all,expose,unexpose}; podman asks for
    it by name"""
    url = "http://gateway.containers.internal/services/forwarder"
    exposed = {"local": ":8080", "remote": f"{VM}:{scene.echo_port}", "protocol": "tcp"}
    with GoClient(scene.program, scene.guest.namespace, "names", "-") as client:
        assert brief(client.ask("POST", f"{url}/expose", exposed)) == (200, "")
        assert brief(client.ask("POST", f"{url}/expose", exposed)) == (500, "proxy already running for tcp on :8080\n")
        with scene.host.entered(), socket.create_connection(("127.0.0.1", 8080), 10) as caller:
            caller.sendall(b"hello")
            assert caller.recv(100) == b"hello"
        assert brief(client.ask("POST", f"{url}/unexpose", exposed)) == (200, "")
        assert brief(client.ask("POST", f"{url}/unexpose", exposed)) == (500, "proxy not found\n")
        assert brief(client.ask("GET", "http://gateway.containers.internal/leases"))[0] == 404
