"""A guest gets its whole network from Moorage: the same checks on Linux's own stack and on QEMU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.checks import GATEWAY, HOST, check_download, check_forward, check_lease, resolve
from tests.guests.guest import Guest, random_sha256
from tests.guests.host import ADDRESS, NO_HOST, NO_NETWORK
from tests.guests.servers import FileServer, Names
from tests.guests.service import Service

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

SIZE = 200_000_000
"""Bytes of the big transfers."""
AT_ONCE = 2.0
"""Seconds: what is refused is refused at once, and emulation is slow."""


def test_guest_configures_itself_by_dhcp(guest: Guest) -> None:
    check_lease(guest.lease)


@pytest.mark.parametrize("address", [GATEWAY, HOST, ADDRESS])
def test_guest_pings_the_gateway_and_the_host(guest: Guest, address: str) -> None:
    assert "2 packets received" in guest.sh(f"busybox ping -c 2 -W 2 {address}")


def test_ping_of_an_address_that_nobody_has_stays_without_answer(guest: Guest) -> None:
    assert guest.attempt(f"busybox ping -c 1 -W 1 {NO_HOST}").status == 1


@pytest.mark.parametrize(("name", "address"), [("gateway", GATEWAY), ("host", HOST)])
def test_gateway_answers_its_own_zone(guest: Guest, name: str, address: str) -> None:
    assert f"Address: {address}" in resolve(guest, f"{name}.containers.internal")


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("www.example.test", "a", "192.0.2.10"),
        ("www.example.test", "aaaa", "2001:db8::10"),
        ("alias.example.test", "cname", "www.example.test"),
        ("example.test", "mx", "mail.example.test"),
        ("example.test", "txt", "in two"),
        ("_http._tcp.example.test", "srv", "www.example.test"),
        ("10.2.0.192.in-addr.arpa", "ptr", "www.example.test"),
    ],
)
def test_other_names_come_from_the_hosts_resolver(guest: Guest, name: str, kind: str, expected: str) -> None:
    assert expected in resolve(guest, name, kind)


def test_a_name_that_does_not_exist_is_said_not_to(guest: Guest) -> None:
    assert "NXDOMAIN" in guest.attempt("busybox nslookup -type=a nowhere.example.test").output


def test_download_arrives_whole(guest: Guest, files: FileServer) -> None:
    check_download(guest, files, SIZE)


def test_upload_arrives_whole(guest: Guest, files: FileServer, probe: Path) -> None:
    path = f"/upload/{guest.mac}"
    answer = guest.sh(f"{guest.probe} post {HOST} {files.port} {path} {SIZE} 7", timeout=120)
    expected = random_sha256(probe, SIZE, 7)
    assert files.received[path] == (SIZE, expected)
    assert answer.endswith(expected)


def test_a_closed_port_refuses_at_once(guest: Guest) -> None:
    began = time.monotonic()
    result = guest.attempt(f"busybox nc -w 10 {HOST} 9")
    assert "Connection refused" in result.output
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize(("address", "error"), [(NO_NETWORK, "Network is unreachable"), (NO_HOST, "No route to host")])
def test_a_destination_without_a_route_is_unreachable_at_once(guest: Guest, address: str, error: str) -> None:
    began = time.monotonic()
    result = guest.attempt(f"busybox nc -w 10 {address} 80")
    assert error in result.output
    assert time.monotonic() - began < AT_ONCE


def test_guest_serves_http_on_a_forwarded_port(guest: Guest, service: Service) -> None:
    check_forward(guest, service)


def test_datagrams_pass_both_ways_whole_and_in_fragments(guest: Guest, echo_port: int) -> None:
    sizes = "1 2 512 1471 1472 1473 2944 2945 4000 7999 8000"
    output = guest.sh(f"{guest.probe} udp {HOST} {echo_port} {sizes}", timeout=90)
    assert output.split("\n")[:-1] == [f"{size} ok" for size in sizes.split()]


def test_a_datagram_to_a_closed_port_is_refused(guest: Guest) -> None:
    assert "Connection refused" in guest.attempt(f"{guest.probe} udp {HOST} 9 100").output


def test_guest_asks_a_dns_server_on_the_host_directly(guest: Guest, names: Names) -> None:
    before = len(names.questions)
    assert "Address: 192.0.2.10" in resolve(guest, "www.example.test", "a", HOST)
    assert ("www.example.test.", "A") in names.questions[before:]


def test_api_shows_the_guest(guest: Guest, service: Service) -> None:
    vm = service.vm(guest.mac)
    assert (vm["ip"], vm["network"], vm["link"]) == (guest.lease.ip, "default", "qemu")
    assert vm["worker_pid"] in service.processes()
    assert vm["uptime"] > 0
    assert service.get("/services/dhcp/leases")[guest.lease.ip] == guest.mac
    stats = service.get("/stats")
    assert min(stats["BytesSent"], stats["BytesReceived"], vm["bytes_from_guest"], vm["bytes_to_guest"]) > 1000
