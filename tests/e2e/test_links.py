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
from tests.guests.namespace import NamespaceGuest
from tests.guests.qemu import QemuGuest
from tests.guests.servers import FileServer
from tests.guests.service import Service
from tests.guests.uml import UmlGuest, is_installed
from tests.guests.vfkit import Vfkit
from tests.guests.waiting import wait_for

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

SIZE = 50_000_000
"""Bytes of the download."""


@pytest.fixture
def guest(kind: str, service: Service, workshop: Path, probe: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A configured guest on the listener of that kind."""
    path, mac = service.path(kind), next(new_macs)
    with contextlib.ExitStack() as stack:
        guest: Guest
        if kind == "bess":
            if not is_installed():
                pytest.skip("not installed: user-mode-linux (make packages)")
            guest = UmlGuest(workshop, path, mac, probe, service.host)
        elif kind == "qemu-dgram":
            netdev = f"dgram,local.type=unix,local.path={path}.vm,remote.type=unix,remote.path={path}"
            guest = QemuGuest(workshop, request.getfixturevalue("initramfs"), netdev, mac, service.host)
            stack.callback(Path(f"{path}.vm").unlink)
        else:
            vfkit = Vfkit(path, service.directory / "card").start()
            stack.callback(vfkit.close)
            guest = NamespaceGuest(workshop, f"unix://{vfkit.card}", mac, probe)
        stack.callback(guest.close)
        guest.configure()
        yield guest


@pytest.mark.parametrize("kind", ["bess", "qemu-dgram", "vfkit"])
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


def test_vms_that_vfkit_attaches_at_the_same_moment_each_have_their_network(
    service: Service, workshop: Path, probe: Path, files: FileServer
) -> None:
    with contextlib.ExitStack() as stack:
        # connected to one socket, all of them, before any has said a word
        processes = [Vfkit(service.path("vfkit"), service.directory / f"card{number}") for number in range(3)]
        guests = []
        for process in processes:
            stack.callback(process.start().close)
            guest = NamespaceGuest(workshop, f"unix://{process.card}", next(new_macs), probe)
            guests.append(stack.enter_context(contextlib.closing(guest)))
        for guest in guests:
            guest.configure()
        assert len({guest.lease.ip for guest in guests}) == len(guests)
        for guest in guests:
            check_download(guest, files, 5_000_000)
            check_forward(guest, service)
        gone = {guest.mac for guest in guests}
    wait_for(lambda: gone.isdisjoint(vm["mac"] for vm in service.get("/v1/vms")["vms"]), 5, "the VMs to be gone")
