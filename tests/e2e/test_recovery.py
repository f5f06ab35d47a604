"""What outlives what: a worker's death, the guest's reboot, the service's restart."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import Any

import pytest

from tests.guests.guest import Guest
from tests.guests.namespace import NamespaceGuest
from tests.guests.servers import file_server, tcp_server
from tests.guests.service import Attach, Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

HOST = "192.168.127.254"
RECOVERY = 1.0
"""Seconds from a worker's death to the next worker."""


def sink(connection: socket.socket) -> None:
    """Take everything until the other end is done."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


@pytest.fixture
def served(own_service: Service, attach: Attach) -> tuple[Service, NamespaceGuest]:
    """A service, and a configured guest that serves a page on forwarded port 8080."""
    guest = attach(own_service)
    guest.configure()
    guest.sh("d=$(mktemp -d) && echo page >$d/index.html && busybox httpd -p 80 -h $d")
    own_service.expose("127.0.0.1:8080", f"{guest.lease.ip}:80")
    return own_service, guest


def fetch(service: Service) -> str:
    return service.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080/").stdout


def kill_worker(service: Service, guest: Guest) -> dict[str, Any]:
    """Kill the guest's worker, see another within the bar; the VM as it then is."""
    before = service.vm(guest.mac)
    os.kill(before["worker_pid"], signal.SIGKILL)
    began = time.monotonic()
    replaced = wait_for(
        lambda: [vm for vm in service.get("/v1/vms")["vms"] if vm["restarts"] == before["restarts"] + 1], 5, "a worker"
    )
    assert time.monotonic() - began < RECOVERY
    assert replaced[0]["id"] == before["id"]
    assert replaced[0]["worker_pid"] != before["worker_pid"]
    found: dict[str, Any] = replaced[0]
    return found


@pytest.mark.alone
def test_a_killed_worker_is_replaced_on_the_same_link(served: tuple[Service, NamespaceGuest]) -> None:
    service, guest = served
    assert fetch(service) == "page\n"
    kill_worker(service, guest)
    guest.sh("busybox ping -c 1 -W 2 192.168.127.1")
    assert "connected to" not in guest.log.read_text().split("connected to", 1)[1], "the link was dropped"
    assert fetch(service) == "page\n"
    old = guest.lease
    assert guest.configure() == old


@pytest.mark.alone
def test_connections_of_a_killed_worker_end_with_a_reset(served: tuple[Service, NamespaceGuest]) -> None:
    service, guest = served
    with tcp_server(service.host, sink) as port:
        with guest.namespace.entered():
            connection = socket.create_connection((HOST, port), 5)
        with connection:
            connection.sendall(b"before")
            kill_worker(service, guest)
            connection.sendall(b"after")
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_a_worker_killed_in_the_middle_of_traffic_leaves_a_working_link(
    served: tuple[Service, NamespaceGuest],
) -> None:
    service, guest = served
    with tcp_server(service.host, sink) as port, file_server(service.host) as files:
        for _ in range(3):
            guest.sh(f"({guest.probe} random 10000000000 1 | busybox nc {HOST} {port}) >/dev/null 2>&1 &")
            guest.sh(f"busybox wget -q -O /dev/null http://{HOST}:{files.port}/data?size=10000000000 >/dev/null 2>&1 &")
            begin = service.vm(guest.mac)["bytes_from_guest"]
            wait_for(lambda: service.vm(guest.mac)["bytes_from_guest"] > begin + 1_000_000, 5, "traffic")  # noqa: B023
            os.kill(service.vm(guest.mac)["worker_pid"], signal.SIGKILL)
            wait_for(lambda: guest.attempt("busybox ping -c 1 -W 1 192.168.127.1").status == 0, 15, "a working link")
        wait_for(lambda: fetch(service) == "page\n", 10, "the forward")


def test_lease_and_forward_survive_a_restart_of_the_service(own_service: Service, attach: Attach) -> None:
    first, second = attach(own_service), attach(own_service)
    first.configure()
    lease = second.configure()
    own_service.expose("127.0.0.1:8080", f"{lease.ip}:80")
    second.sh("d=$(mktemp -d) && echo page >$d/index.html && busybox httpd -p 80 -h $d")
    own_service.stop()
    first.close()
    own_service.start()
    assert second.configure().ip == lease.ip
    assert fetch(own_service) == "page\n"


def test_a_vm_that_comes_back_with_its_mac_gets_its_address_back(own_service: Service, attach: Attach) -> None:
    first, second = attach(own_service), attach(own_service)
    first.configure()
    lease = second.configure()
    first.close()
    second.close()
    assert attach(own_service, second.mac).configure().ip == lease.ip


def test_sigterm_in_the_middle_of_traffic_leaves_nothing(served: tuple[Service, NamespaceGuest]) -> None:
    service, guest = served
    with tcp_server(service.host, sink) as port, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(service.link_path))
        guest.sh(f"({guest.probe} random 10000000000 1 | busybox nc {HOST} {port}) >/dev/null 2>&1 &")
        wait_for(lambda: service.vm(guest.mac)["bytes_from_guest"] > 1_000_000, 5, "traffic")
        service.stop()
