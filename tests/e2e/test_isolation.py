"""One VM, one process: what one guest does, another does not notice."""

from __future__ import annotations

import os
import socket

import pytest

from proto.framing import pack
from tests.guests.service import Attach, Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest


def test_a_second_guest_gets_its_own_worker_and_lease(service: Service, attach: Attach) -> None:
    one, other = attach(service), attach(service)
    assert one.configure().ip != other.configure().ip
    vms = [service.vm(guest.mac) for guest in (one, other)]
    assert len({vm["worker_pid"] for vm in vms}) == 2
    assert len({vm["id"] for vm in vms}) == 2
    assert [vm["ip"] for vm in vms] == [one.lease.ip, other.lease.ip]


def test_a_vm_says_where_it_came_in_and_who_it_is(service: Service, attach: Attach) -> None:
    guest = attach(service)
    guest.configure()
    vm = service.vm(guest.mac)
    assert vm["listener"] == f"unix://{service.link_path}"
    assert f"uid={os.getuid()}" in vm["peer"]


def test_a_garbled_length_closes_that_link_and_no_other(service: Service, attach: Attach) -> None:
    guest = attach(service)
    guest.configure()
    before, garbled = service.vm(guest.mac), service.counters()["link.garbled"]
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(str(service.link_path))
        link.sendall(pack(bytes(60)) + b"\xff" * 16)
        assert link.recv(1) == b""
    wait_for(lambda: "frame length 4294967295 is over the limit of" in service.log_text(), 5, "the log line")
    guest.sh("busybox ping -c 1 -W 2 192.168.127.1")
    after = service.vm(guest.mac)
    assert (after["worker_pid"], after["restarts"]) == (before["worker_pid"], 0)
    wait_for(lambda: service.counters()["link.garbled"] > garbled, 5, "its worker's last counters")


def test_a_vm_that_leaves_takes_its_worker_with_it(service: Service, attach: Attach) -> None:
    guest = attach(service)
    guest.configure()
    vm = service.vm(guest.mac)
    guest.close()
    wait_for(lambda: vm["worker_pid"] not in service.processes(), 5, "the worker to end")
    assert all(other["id"] != vm["id"] for other in service.get("/v1/vms")["vms"])


def test_silent_and_senseless_clients_do_no_harm(service: Service, attach: Attach) -> None:
    """A client that never speaks, one that sends tiny frames, one that sends noise in well-formed frames."""
    links = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    try:
        for link in links:
            link.connect(str(service.link_path))
        links[1].sendall(b"".join(pack(bytes(size)) for size in range(64)))
        links[2].sendall(b"".join(pack(os.urandom(200)) for _ in range(200)))
        guest = attach(service)
        guest.configure()
        guest.sh("busybox ping -c 1 -W 2 192.168.127.1")
        assert len(service.get("/v1/vms")["vms"]) >= 4
    finally:
        for link in links:
            link.close()
