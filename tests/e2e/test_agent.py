"""A guest that has nothing but the agent: it gets its address, its route and its names by itself."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.guests.host import make_host
from tests.guests.namespace import Namespace
from tests.guests.servers import FileServer
from tests.guests.service import Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

GATEWAY, HOST = "192.168.127.1", "192.168.127.254"
SIZE = 50_000_000
"""Bytes of the download."""
BEFORE = "nameserver 192.0.2.53\n"
"""The guest's resolv.conf without a lease."""

OWN_ETC = """
    mkdir "$0" && cp -a /etc/dhcp /etc/alternatives "$0" && touch "$0/fstab"
    mount --bind "$0" /etc
    mount -t tmpfs none /var/lib/dhcp
    exec "$@"
"""
"""Run what follows on a copy of what dhclient's script reads and writes, in place of the machine's."""

_macs = (f"5a:94:ef:e4:0e:{number:02x}" for number in itertools.count(1))


class AgentGuest:
    """A namespace with an agent that configures it."""

    def __init__(self, service: Service, directory: Path, url: str, *options: str, wrapper: Sequence[str] = ()) -> None:
        self.namespace = Namespace("agent")
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text(BEFORE)
        self.log = directory / "log"
        self.mac = next(_macs)
        argv = [*wrapper, sys.executable, "-m", "agent", "--connect", url, "--netns", self.namespace.name]
        argv += ["--mac", self.mac, "--resolv-conf", str(self.resolv_conf), *options]
        with self.log.open("wb") as log:
            self.agent = subprocess.Popen(service.host.command(argv), stdin=subprocess.DEVNULL, stderr=log)

    def wait_for_lease(self) -> str:
        """The address."""
        found = wait_for(lambda: re.search(r"tap0 has ([\d.]+)/24", self.log.read_text()), 10, "a lease")
        return found[1]

    def pings(self, address: str) -> bool:
        return self.namespace.run("busybox", "ping", "-c", "1", "-W", "1", address).returncode == 0

    def close(self) -> None:
        self.agent.send_signal(signal.SIGTERM)
        try:
            assert self.agent.wait(5) == 0, self.log.read_text()
        finally:
            self.agent.kill()
            self.agent.wait()
            self.namespace.close()


@pytest.fixture(params=["unix", "stdio"])
def guest(request: pytest.FixtureRequest, service: Service, tmp_path: Path) -> Iterator[AgentGuest]:
    program = f"stdio:{sys.executable} -m tests.guests.stdio {service.link_path}"
    url = {"unix": service.unix_url, "stdio": program}[request.param]
    with contextlib.closing(AgentGuest(service, tmp_path, url)) as guest:
        yield guest


def test_the_agent_configures_all_that_a_guest_needs(guest: AgentGuest, files: FileServer) -> None:
    address = guest.wait_for_lease()
    shown = guest.namespace.run("ip", "addr", "show", "tap0").stdout
    assert f"inet {address}/24 brd 192.168.127.255" in shown
    assert f"link/ether {guest.mac}" in shown
    assert "mtu 1500" in shown
    assert f"default via {GATEWAY} dev tap0" in guest.namespace.run("ip", "route").stdout
    assert guest.resolv_conf.read_text() == f"search lab.test example.test\nnameserver {GATEWAY}\n"
    answer = guest.namespace.run("busybox", "nslookup", "-type=a", "www.example.test", GATEWAY).stdout
    assert "192.0.2.10" in answer
    url = f"http://{HOST}:{files.port}/data?size={SIZE}"
    fetched = guest.namespace.run("sh", "-c", f"busybox wget -q -O - '{url}' | sha256sum").stdout
    assert fetched.split()[0] == files.sha256(SIZE)


def test_the_name_servers_of_before_come_back_when_the_agent_ends(service: Service, tmp_path: Path) -> None:
    with contextlib.closing(AgentGuest(service, tmp_path, service.unix_url)) as guest:
        guest.wait_for_lease()
        assert guest.resolv_conf.read_text() != BEFORE
    assert guest.resolv_conf.read_text() == BEFORE


def test_the_agent_leaves_it_to_dhclient_if_told(service: Service, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    wrapper = ("unshare", "-m", "sh", "-ec", OWN_ETC, str(etc))
    options = ("--dhcp", "dhclient")
    with contextlib.closing(AgentGuest(service, tmp_path, service.unix_url, *options, wrapper=wrapper)) as guest:
        bound = wait_for(lambda: re.search(r"bound to ([\d.]+)", guest.log.read_text()), 20, "a lease")
        shown = guest.namespace.run("ip", "addr", "show", "tap0").stdout
        assert f"inet {bound[1]}/24 brd 192.168.127.255" in shown
        assert f"default via {GATEWAY} dev tap0" in guest.namespace.run("ip", "route").stdout
        names = (etc / "resolv.conf").read_text().splitlines()
        assert {f"nameserver {GATEWAY}", "search lab.test. example.test."} <= set(names)
        assert guest.resolv_conf.read_text() == BEFORE
        assert guest.pings(HOST)
        assert guest.namespace.pids()
        guest.agent.send_signal(signal.SIGTERM)
        assert guest.agent.wait(5) == 0, guest.log.read_text()
        assert guest.namespace.pids() == [], "dhclient ends with the agent"


def test_the_agent_comes_back_by_http_when_the_service_does_and_keeps_its_address(tmp_path: Path) -> None:
    with make_host() as host, contextlib.closing(Service(host)) as service:
        path = service.directory / "connect.sock"
        service.arguments = ("--listen", f"vsock=unix://{path}")
        service.start()
        with contextlib.closing(AgentGuest(service, tmp_path, f"unix://{path}/connect")) as guest:
            address = guest.wait_for_lease()
            service.stop()
            assert f"inet {address}/24" in guest.namespace.run("ip", "addr", "show", "tap0").stdout
            service.start()
            wait_for(lambda: guest.log.read_text().count("connected to") == 2, 15, "the second link")
            wait_for(lambda: guest.pings(HOST), 10, "the way to the host")
            vm = service.vm(guest.mac)
            assert (vm["ip"], vm["link"]) == (address, "vsock")
            assert guest.log.read_text().count("tap0 has") == 1
