"""Every other kind of link carries what QEMU's streams do: DHCP, DNS, a download, a forwarded port, from end to end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.checks import HOST, check_download, check_forward, check_lease, resolve
from tests.e2e.conftest import new_macs
from tests.guests.guest import Guest
from tests.guests.servers import FileServer
from tests.guests.service import Service
from tests.guests.uml import UmlGuest, is_installed
from tests.guests.waiting import wait_for

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

SIZE = 50_000_000
"""Bytes of the download."""


@pytest.fixture
def guest(kind: str, service: Service, workshop: Path, probe: Path) -> Iterator[Guest]:
    """A configured guest on the listener of that kind."""
    if not is_installed():
        pytest.skip("not installed: user-mode-linux (make packages)")
    guest = UmlGuest(workshop, service.path(kind), next(new_macs), probe, service.host)
    with contextlib.closing(guest):
        guest.configure()
        yield guest


@pytest.mark.parametrize("kind", ["bess"])
def test_a_link_carries_everything_and_outlives_its_worker(
    kind: str, guest: Guest, service: Service, files: FileServer
) -> None:
    check_lease(guest.lease)
    assert "192.0.2.10" in resolve(guest, "www.example.test")
    check_download(guest, files, SIZE)
    check_forward(guest, service)
    before = service.vm(guest.mac)
    assert (before["ip"], before["link"]) == (guest.lease.ip, kind)

    os.kill(before["worker_pid"], signal.SIGKILL)
    wait_for(lambda: guest.attempt(f"busybox ping -c 1 -W 1 {HOST}").status == 0, 15, "a working link")
    after = service.vm(guest.mac)
    assert (after["id"], after["restarts"]) == (before["id"], 1)
    check_download(guest, files, 1_000_000)

    guest.close()
    wait_for(lambda: all(vm["id"] != before["id"] for vm in service.get("/v1/vms")["vms"]), 5, "the VM to be gone")
