"""gvproxy's API inside the network, ``http://GATEWAY:80``, line by line, on a real guest; and its limits here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.guest import build_probe
from tests.guests.gvproxy import MAC, Gvproxy
from tests.guests.host import ADDRESS, make_host
from tests.guests.namespace import Namespace, NamespaceGuest
from tests.guests.service import Service

pytestmark = pytest.mark.guest

API = "http://192.168.127.1/services/forwarder"
VM = "192.168.127.2"


class Bed:
    """A running gvproxy and its one VM."""

    def __init__(self, host: Namespace, running: Gvproxy, guest: NamespaceGuest) -> None:
        self.host, self.running, self.guest = host, running, guest

    def curl(self, url: str, body: object = None) -> tuple[int, str]:
        """Status and body of what the guest asks."""
        data = f"--data-raw '{body if isinstance(body, str) else json.dumps(body)}'" if body is not None else ""
        answer = self.guest.sh(f"curl -sS --max-time 10 -w '\\n%{{http_code}}' {data} '{url}'")
        text, _, status = answer.rpartition("\n")
        return int(status), text

    def expose(self, local: str, remote: str, protocol: str = "tcp") -> tuple[int, str]:
        return self.curl(f"{API}/expose", {"local": local, "remote": remote, "protocol": protocol})

    def unexpose(self, local: str, protocol: str = "tcp") -> tuple[int, str]:
        return self.curl(f"{API}/unexpose", {"local": local, "protocol": protocol})


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    directory = tmp_path_factory.mktemp("g")
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(make_host())
        flags = ("-listen", "unix://DIR/api.sock", "-listen-vpnkit", "unix://DIR/v", "-ssh-port", "2222")
        running = stack.enter_context(Gvproxy(host, directory, *flags))
        url = f"unix://{running.api}/connect"
        guest = NamespaceGuest(directory, url, MAC, build_probe(directory), host)
        stack.callback(guest.close)
        assert guest.configure().ip == VM
        yield Bed(host, running, guest)


def test_the_guest_forwards_a_port_to_itself_and_ends_it(bed: Bed) -> None:
    """Inside the network http://gatewayIP:80 serves exactly `/services/forwarder/{all,expose,unexpose}`; `":port"` =>
    caller's IP"""
    bed.guest.sh("d=$(mktemp -d) && echo hello >$d/index.html && busybox httpd -p 8080 -h $d")
    assert bed.expose(":18080", ":8080") == (200, "")
    listed = json.loads(bed.curl(f"{API}/all")[1])
    assert {"local": ":18080", "remote": f"{VM}:8080", "protocol": "tcp"} in listed
    fetched = bed.host.run("curl", "-sS", "--max-time", "10", f"http://{ADDRESS}:18080/")
    assert fetched.stdout == "hello\n", fetched.stderr
    assert bed.expose(":18080", ":8080") == (500, "proxy already running for tcp on :18080\n")
    assert bed.unexpose(":18080") == (200, "")
    assert bed.unexpose(":18080") == (500, "proxy not found\n")


def test_errors_are_those_of_the_hosts_api(bed: Bed) -> None:
    """400: `post only`; JSON error text"""
    assert bed.curl(f"{API}/expose") == (400, "post only\n")
    assert bed.curl(f"{API}/expose", "junk") == (400, "invalid character 'j' looking for beginning of value\n")
    assert bed.expose(":1", VM) == (400, f"address {VM}: missing port in address\n")


def test_a_body_may_come_in_chunks(bed: Bed) -> None:
    """Go's `net/http` sends a body whose length it does not know so"""
    asked = json.dumps({"local": ":18081", "remote": ":80"})
    answer = bed.guest.sh(
        f"curl -sS --max-time 10 -w '%{{http_code}}' -H 'Transfer-Encoding: chunked' -d '{asked}' {API}/expose"
    )
    assert answer == "200"
    assert bed.unexpose(":18081") == (200, "")


@pytest.mark.parametrize("path", ["", "stats", "cam", "leases", "services/dns/all", "tunnel?ip=1&port=1", "v1/vms"])
def test_all_else_is_404(bed: Bed, path: str) -> None:
    """all else 404"""
    assert bed.curl(f"http://192.168.127.1/{path}") == (404, "404 page not found\n")


def test_a_guest_never_deletes_a_file_of_the_host_nor_names_its_key_files(bed: Bed, tmp_path: Path) -> None:
    """never deletes a host file, never takes a key file's name from a guest"""
    precious = tmp_path / "precious"
    precious.write_text("data")
    key = f"ssh-tunnel://core@{VM}/run/s?key={precious}"
    for remote in (f"tcp://{VM}:80", key):
        status, text = bed.expose(str(precious), remote, "unix")
        assert (status, text) == (500, "a guest may forward tcp and udp, not unix\n")
    assert precious.read_text() == "data"


def test_a_guest_does_not_end_what_the_host_has_forwarded(bed: Bed) -> None:
    """so a guest may bind any host port, delete/replace host files there; here it ends only what it made"""
    assert bed.unexpose("127.0.0.1:2222") == (500, "proxy not found\n")
    assert "127.0.0.1:2222" in [forward["local"] for forward in bed.running.get("/services/forwarder/all")]


def test_a_guest_that_keeps_connections_open_keeps_nobody_elses(bed: Bed) -> None:
    """Better: a worker serves its own guest alone, and the host's API does not notice."""
    bed.guest.sh(
        "for i in $(busybox seq 40); do (busybox sleep 5 | busybox nc 192.168.127.1 80 >/dev/null 2>&1 &) ; done"
    )
    assert bed.running.get("/services/forwarder/all")


def test_it_is_there_only_where_it_is_switched_on_and_may_be_limited_to_ports(tmp_path: Path) -> None:
    """Better: exists only in drop-in mode or when switched on, and can be limited to ports"""
    config = tmp_path / "moorage.yaml"
    config.write_text('networks: {some: {guest-api: ["18000-18999"]}}')
    urls = {name: f"unix://{tmp_path}/{name}" for name in ("default", "some")}
    listeners = [f"--listen=qemu={url},network={name}" for name, url in urls.items()]
    answers = []
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(make_host())
        stack.enter_context(Service(host, "--config", str(config), *listeners))
        for name, url in urls.items():
            guest = NamespaceGuest(tmp_path, url, MAC, build_probe(tmp_path), host)
            stack.callback(guest.close)
            guest.configure()
            for port in (18100, 19000):
                body = json.dumps({"local": f":{port}", "remote": ":80"})
                answers.append((name, guest.sh(f"curl -sS --max-time 10 -d '{body}' {API}/expose 2>&1 || true")))
    (_, one), (_, other), *rest = answers
    assert all("Connection refused" in answer or "Couldn't connect" in answer for answer in (one, other)), answers
    assert rest == [("some", ""), ("some", "a guest may not listen on port 19000 of this host\n")]
