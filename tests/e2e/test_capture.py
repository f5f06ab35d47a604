"""Captures of real guests' traffic, by the command, while it goes on."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dpkt
import pytest

from tests.guests.host import make_host
from tests.guests.namespace import NamespaceGuest
from tests.guests.pcapng import FROM_GUEST, TO_GUEST, Captured, interfaces, packets
from tests.guests.service import MOORAGE, Attach, Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

GATEWAY = "192.168.127.1"
ECHO_REPLY, ECHO_REQUEST = 0, 8


@pytest.fixture
def guest(service: Service, attach: Attach) -> NamespaceGuest:
    guest = attach(service)
    guest.configure()
    return guest


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(service: Service) -> Iterator[Start]:
    """Starts ``moorage capture``; it goes with the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, of: Service = service) -> subprocess.Popen[bytes]:
            command = [str(MOORAGE), "capture", *arguments, "--api", f"unix://{of.api_path}"]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            return process

        yield start


def echoes(seen: list[Captured], kind: int) -> list[tuple[int, int]]:
    """The pings in a capture: their directions and sequence numbers."""
    found = []
    for packet in seen:
        ip = dpkt.ethernet.Ethernet(packet.frame).data
        if isinstance(ip, dpkt.ip.IP) and isinstance(ip.data, dpkt.icmp.ICMP) and ip.data.type == kind:
            found.append((packet.direction, ip.data.data.seq))
    return found


def test_a_capture_can_be_read_while_it_grows(
    service: Service, guest: NamespaceGuest, start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "vm.pcapng"
    process = start(guest.mac, "-w", str(file))
    wait_for(lambda: file.exists() and file.stat().st_size, 10.0, "the capture to begin")
    assert interfaces(file.read_bytes()) == [service.vm(guest.mac)["id"]]

    def replies() -> int:
        return len(echoes(packets(file.read_bytes()), ECHO_REPLY))

    guest.sh(f"ping -c 2 -i 0.2 -W 5 {GATEWAY}")
    wait_for(lambda: replies() == 2, 5.0, "the pings in the file")
    guest.sh(f"ping -c 2 -i 0.2 -W 5 {GATEWAY}")
    wait_for(lambda: replies() == 4, 5.0, "more pings in the file")
    seen = packets(file.read_bytes())
    assert [direction for direction, _ in echoes(seen, ECHO_REQUEST)] == [FROM_GUEST] * 4
    assert [direction for direction, _ in echoes(seen, ECHO_REPLY)] == [TO_GUEST] * 4
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0
    wait_for(lambda: "capture of" in service.log_text() and "ended" in service.log_text(), 5.0, "its end")
    shown = subprocess.run(["tcpdump", "-nr", str(file)], capture_output=True, text=True, check=True)
    assert shown.stdout.count("ICMP echo request") == 4


def test_tcpdump_reads_it_from_a_pipe(guest: NamespaceGuest, start: Start) -> None:
    process = start(guest.mac, "--snaplen", "60")
    assert process.stdout is not None
    tcpdump = subprocess.Popen(
        ["tcpdump", "-n", "-l", "-c", "3", "-r", "-", "icmp"], stdin=process.stdout, stdout=subprocess.PIPE, text=True
    )
    process.stdout.close()
    guest.sh(f"ping -c 5 -i 0.2 -W 5 {GATEWAY}")
    try:
        shown, _ = tcpdump.communicate(timeout=20)
    finally:
        tcpdump.kill()
        tcpdump.wait()
    assert shown.count("ICMP echo re") == 3
    guest.sh(f"ping -c 2 -i 0.2 -W 5 {GATEWAY}")
    assert process.wait(10) == 0  # nobody reads any more


def test_whoever_captures_no_such_vm_is_told(start: Start) -> None:
    process = start("vm999")
    _, said = process.communicate(timeout=10)
    assert process.returncode == 1
    assert said == b"moorage capture: there is no VM vm999; GET /v1/vms lists them\n"


def test_four_captures_of_a_vm_are_enough(service: Service, guest: NamespaceGuest) -> None:
    vm = service.vm(guest.mac)["id"]
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(10)
            sock.connect(str(service.api_path))
            sock.sendall(f"GET /v1/vms/{vm}/capture HTTP/1.1\r\nHost: unix\r\n\r\n".encode())
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-pcapng\r\n")
        status, text = service.request("GET", f"/v1/vms/{vm}/capture")
        assert (status, json.loads(text)["code"]) == (409, "conflict")
        assert service.request("GET", f"/v1/vms/{vm}/capture?snaplen=all")[0] == 400
    wait_for(lambda: _captures(service, vm), 5.0, "room for another")


def _captures(service: Service, vm: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(service.api_path))
        sock.sendall(f"GET /v1/vms/{vm}/capture HTTP/1.1\r\nHost: unix\r\n\r\n".encode())
        return sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_capture_goes_on_with_the_worker_that_replaces_a_dead_one(
    own_service: Service, attach: Attach, start: Start, tmp_path: Path
) -> None:
    """As workers die: in the middle of traffic, with a block half written."""
    guest = attach(own_service)
    guest.configure()
    file = tmp_path / "vm.pcapng"
    process = start(guest.mac, "-w", str(file), of=own_service)
    wait_for(lambda: file.exists() and file.stat().st_size, 10.0, "the capture to begin")

    def seen() -> int:
        return len(packets(file.read_bytes()))

    def dropped() -> int:
        detail = own_service.get(f"/v1/vms/{own_service.vm(guest.mac)['id']}")
        return int(detail["counters"].get("capture.dropped", 0))

    def kill_a_busy_worker() -> None:
        before, lost = seen(), dropped()
        pinging = guest.namespace.start("ping", "-f", "-q", "-s", "1400", GATEWAY)
        try:
            wait_for(lambda: seen() > before + 600, 20.0, "much traffic")
            process.send_signal(signal.SIGSTOP)  # its socket fills, and so the worker has a part of a block left
            wait_for(lambda: dropped() > lost, 20.0, "a full buffer")
            worker = own_service.vm(guest.mac)["worker_pid"]
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: own_service.vm(guest.mac)["worker_pid"] not in (0, worker), 10.0, "another worker")
        finally:
            process.send_signal(signal.SIGCONT)
            pinging.kill()
            pinging.wait()

    for _ in range(2):
        kill_a_busy_worker()
        before = seen()
        guest.sh(f"ping -c 3 -i 0.2 -W 5 {GATEWAY}")
        wait_for(functools.partial(_has_more, file, before), 10.0, "what the new worker carries")
    shown = subprocess.run(["tcpdump", "-nr", str(file)], capture_output=True, text=True, check=True)
    assert shown.stdout.count("ICMP echo request") > 600
    assert interfaces(file.read_bytes()) == [own_service.vm(guest.mac)["id"]]
    guest.close()
    assert process.wait(10) == 0, "the VM is gone"


def _has_more(file: Path, before: int) -> bool:
    return len(packets(file.read_bytes())) > before


def test_a_file_gets_all_traffic_of_all_vms_from_the_first_frame_on(attach: Attach, tmp_path: Path) -> None:
    file = tmp_path / "all.pcapng"
    file.write_text("what was there before")
    with make_host() as host, Service(host, "--capture-file", str(file)) as service:
        guests = [attach(service) for _ in range(2)]
        for guest in guests:
            guest.configure()
        vms = [service.vm(guest.mac) for guest in guests]
        os.kill(vms[0]["worker_pid"], signal.SIGKILL)
        wait_for(lambda: service.vm(guests[0].mac)["worker_pid"] not in (0, vms[0]["worker_pid"]), 10.0, "a worker")
        for guest in guests:
            guest.sh(f"ping -c 3 -i 0.2 -W 5 {GATEWAY}")
        data = wait_for(lambda: _with_replies(file, 6), 5.0, "the pings in the file")
    assert interfaces(data) == [vm["id"] for vm in vms]
    for number, guest in enumerate(guests):
        mine = [packet for packet in packets(data) if packet.interface == number]
        assert len(echoes(mine, ECHO_REPLY)) == 3
        macs = {packet.frame[6:12] for packet in mine if packet.direction == FROM_GUEST}
        assert macs == {bytes.fromhex(guest.mac.replace(":", ""))}
        assert any(packet.frame[36:38] == b"\0\x43" for packet in mine)  # DHCP, to port 67


def _with_replies(file: Path, count: int) -> bytes | None:
    data = file.read_bytes()
    return data if len(echoes(packets(data), ECHO_REPLY)) >= count else None
