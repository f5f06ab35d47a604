"""One host with the service and its neighbours, and the guests attached to it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.guest import Guest, build_probe
from tests.guests.host import make_host
from tests.guests.namespace import Namespace, NamespaceGuest
from tests.guests.qemu import KERNEL, QemuGuest, build_initramfs
from tests.guests.servers import FileServer, Names, dns_server, file_server, udp_echo
from tests.guests.service import Attach, Service

ZONE = """
www.example.test. 300 IN A 192.0.2.10
www.example.test. 300 IN AAAA 2001:db8::10
alias.example.test. 300 IN CNAME www.example.test.
example.test. 300 IN MX 10 mail.example.test.
example.test. 300 IN TXT "in two" "strings"
_http._tcp.example.test. 300 IN SRV 1 2 80 www.example.test.
10.2.0.192.in-addr.arpa. 300 IN PTR www.example.test.
host.lab.test. 300 IN A 10.77.0.1
"""

new_macs = (f"5a:94:ef:e4:0d:{number:02x}" for number in itertools.count(1))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the programs and files of guests."""
    return tmp_path_factory.mktemp("guests")


@pytest.fixture(scope="session")
def probe(workshop: Path) -> Path:
    return build_probe(workshop)


@pytest.fixture(scope="session")
def initramfs(workshop: Path, probe: Path) -> Path:
    if not KERNEL.exists():
        pytest.skip("no guest kernel in .cache/guest (make packages)")
    return build_initramfs(workshop, probe)


@pytest.fixture(scope="session")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        yield host


@pytest.fixture(scope="session")
def names(host: Namespace) -> Iterator[Names]:
    """The DNS server of the host's resolv.conf."""
    with dns_server(host, ZONE) as names:
        yield names


@pytest.fixture(scope="session")
def files(host: Namespace) -> Iterator[FileServer]:
    with file_server(host) as files:
        yield files


@pytest.fixture(scope="session")
def echo_port(host: Namespace) -> Iterator[int]:
    """Port of the UDP echo server on the host's 127.0.0.1."""
    with udp_echo(host) as port:
        yield port


@pytest.fixture(scope="session")
def service(host: Namespace, names: Names) -> Iterator[Service]:
    """The service that the guests of a session share; tests that harm a service start their own."""
    with Service(host) as service:
        yield service


@pytest.fixture(scope="session", params=["namespace", "qemu-unix", "qemu-tcp"])
def guest(request: pytest.FixtureRequest, service: Service, workshop: Path, probe: Path) -> Iterator[Guest]:
    """A configured guest of each kind in turn."""
    mac = next(new_macs)
    guest: Guest
    if request.param == "namespace":
        guest = NamespaceGuest(workshop, service.unix_url, mac, probe, service.host)
    else:
        netdev = service.unix_netdev if request.param == "qemu-unix" else service.tcp_netdev
        guest = QemuGuest(workshop, request.getfixturevalue("initramfs"), netdev, mac, service.host)
    with contextlib.closing(guest):
        guest.configure()
        yield guest


@pytest.fixture
def attach(workshop: Path, probe: Path) -> Iterator[Attach]:
    """Attaches one more namespace guest, not yet configured, to a service; it goes with the test."""
    with contextlib.ExitStack() as guests:

        def attach(service: Service, mac: str = "") -> NamespaceGuest:
            guest = NamespaceGuest(workshop, service.unix_url, mac or next(new_macs), probe, service.host)
            return guests.enter_context(contextlib.closing(guest))

        yield attach


@pytest.fixture
def own_service() -> Iterator[Service]:
    """A service in a host of its own, for a test that does harm to it."""
    with make_host() as host, Service(host) as service:
        yield service
