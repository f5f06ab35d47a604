"""Tap devices with offloads: a network namespace gets its whole network from a device that the service opens itself."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.guest import random_sha256
from tests.guests.host import make_host
from tests.guests.namespace import Namespace, TapGuest
from tests.guests.servers import FileServer, Names
from tests.guests.service import Service
from tests.guests.waiting import wait_for

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

HOST = "192.168.127.254"
SIZE = 50_000_000
MSS = 1448
"""Bytes that a segment has where the MTU is 1500."""


@contextlib.contextmanager
def served_by_tap(host: Namespace, directory: Path, probe: Path, mtu: int = 1500) -> Iterator[tuple[Service, TapGuest]]:
    """A service whose one guest is on a tap device, configured."""
    with contextlib.closing(TapGuest(directory, probe)) as guest:
        with Service(host, "--listen", f"tap={guest.url}", "--mtu", str(mtu)) as service:
            guest.learn_mac()
            guest.configure()
            yield service, guest


@pytest.fixture(scope="module", params=[1500, 65520])
def tap(
    request: pytest.FixtureRequest, host: Namespace, names: Names, workshop: Path, probe: Path
) -> Iterator[tuple[Service, TapGuest]]:
    with served_by_tap(host, workshop, probe, request.param) as pair:
        yield pair


def test_the_guest_has_addresses_and_names(tap: tuple[Service, TapGuest]) -> None:
    service, guest = tap
    assert guest.lease.ip == "192.168.127.2"
    assert "Address: 192.0.2.10" in guest.sh("busybox nslookup -type=a www.example.test")
    vm = service.vm(guest.mac)
    assert (vm["link"], vm["listener"], vm["ip"]) == ("tap", guest.url, guest.lease.ip)


def test_a_download_arrives_whole(tap: tuple[Service, TapGuest], files: FileServer) -> None:
    _, guest = tap
    fetch = f"busybox wget -q -O - 'http://{HOST}:{files.port}/data?size={SIZE}'"
    assert guest.sh(f"{fetch} | busybox sha256sum", 60).split()[0] == files.sha256(SIZE)


def test_an_upload_arrives_whole_also_where_the_guest_s_queue_loses_packets(
    tap: tuple[Service, TapGuest], files: FileServer, probe: Path
) -> None:
    _, guest = tap
    for queue in (4, 1000):
        guest.namespace.ip("link", "set", guest.interface, "txqueuelen", str(queue))
        path = f"/upload/{guest.mac}/{queue}"
        head = f"POST {path} HTTP/1.0\\r\\nContent-Length: {SIZE}\\r\\n\\r\\n"
        guest.sh(f"(printf '{head}'; {guest.probe} random {SIZE} 7) | busybox nc {HOST} {files.port}", timeout=60)
        assert files.received[path] == (SIZE, random_sha256(probe, SIZE, 7))


def test_a_forwarded_port_leads_in(tap: tuple[Service, TapGuest], host: Namespace) -> None:
    service, guest = tap
    guest.sh(f"d=$(mktemp -d) && echo hello from {guest.mac} >$d/index.html && busybox httpd -p 80 -h $d")
    service.expose("127.0.0.1:8086", f"{guest.lease.ip}:80")
    fetched = host.run("curl", "-sS", "--max-time", "10", "http://127.0.0.1:8086/")
    assert fetched.stdout == f"hello from {guest.mac}\n", fetched.stderr


def test_datagrams_pass_both_ways_whole_and_in_fragments(tap: tuple[Service, TapGuest], echo_port: int) -> None:
    _, guest = tap
    sizes = "1 2 512 1471 1472 1473 2944 4000 8000"
    output = guest.sh(f"{guest.probe} udp {HOST} {echo_port} {sizes}", timeout=60)
    assert output.split("\n")[:-1] == [f"{size} ok" for size in sizes.split()]


def test_pings_are_answered(tap: tuple[Service, TapGuest]) -> None:
    assert "2 packets received" in tap[1].sh(f"busybox ping -c 2 -W 2 {HOST}")


def test_segments_are_handed_over_uncut_both_ways(tap: tuple[Service, TapGuest], files: FileServer) -> None:
    """Each way by itself, that the acknowledgments of the other are no part of it."""
    service, guest = tap

    def carried(transfer: str) -> dict[str, int]:
        vm = f"/v1/vms/{service.vm(guest.mac)['id']}"
        before = service.get(vm)["counters"]
        guest.sh(transfer, timeout=60)
        return {name: value - before.get(name, 0) for name, value in service.get(vm)["counters"].items()}

    fetched = carried(f"busybox wget -q -O - 'http://{HOST}:{files.port}/data?size={SIZE}' >/dev/null")
    assert fetched["link.tx_frames"] < SIZE // MSS
    # curl, as it sends in large pieces: what a program sends bit by bit arrives bit by bit
    url = f"http://{HOST}:{files.port}/upload/{guest.mac}/uncut"
    sent = carried(f"{guest.probe} random {SIZE} 7 | curl -s -H Expect: --data-binary @- {url}")
    assert sent["link.rx_frames"] < SIZE // MSS
    for counters in (fetched, sent):
        assert not counters.get("tcp.bad_checksum")
        assert not counters.get("ethernet.malformed")


def test_another_worker_takes_over_the_device(tap: tuple[Service, TapGuest]) -> None:
    service, guest = tap
    before = service.vm(guest.mac)
    os.kill(before["worker_pid"], signal.SIGKILL)
    wait_for(lambda: service.vm(guest.mac)["restarts"] == 1, 5, "another worker")
    guest.sh(f"busybox ping -c 1 -W 5 {HOST}")
    assert service.vm(guest.mac)["id"] == before["id"]


def test_a_vm_ends_with_its_device_or_its_namespace(workshop: Path, probe: Path) -> None:
    def vms() -> set[str]:
        return {vm["id"] for vm in service.get("/v1/vms")["vms"]}

    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(contextlib.closing(TapGuest(workshop, probe))) for _ in range(2))
        listeners = ("--listen", f"tap={first.url}", "--listen", f"tap={second.url}")
        service = stack.enter_context(Service(stack.enter_context(make_host()), *listeners))
        wait_for(lambda: len(vms()) == 2, 5, "both VMs")
        first.learn_mac()
        first.configure()
        gone = service.vm(first.mac)["id"]
        first.namespace.ip("link", "delete", first.interface)
        wait_for(lambda: gone not in vms(), 5, "the VM without a device to end")
        assert f"{gone} detached: No such device" in service.log_text()
        assert len(vms()) == 1
        second.close()
        wait_for(lambda: not vms(), 10, "the VM without a namespace to end")
        assert "detached: its network namespace is gone" in service.log_text()
