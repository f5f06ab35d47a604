"""On a line that loses, repeats, reorders and delays frames data arrives whole, and connections end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.guest import random_sha256
from tests.guests.lossy import FROM_GUEST, TO_GUEST, Impairment, LossyLink
from tests.guests.namespace import NamespaceGuest
from tests.guests.servers import FileServer
from tests.guests.service import Service
from tests.guests.waiting import wait_for

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

HOST = "192.168.127.254"
TIME_WAIT = 20.0
"""Seconds after which a finished connection must be forgotten."""

# Loss, bytes carried each way, and the least bytes a second: at most a third of what was measured, so that only a
# sender that stalls falls below it.
LINES = [(0.001, 20_000_000, 1_000_000), (0.01, 8_000_000, 400_000), (0.03, 4_000_000, 150_000)]


@contextlib.contextmanager
def guest_on_a_bad_line(
    loss: float, service: Service, directory: Path, probe: Path
) -> Iterator[tuple[NamespaceGuest, LossyLink]]:
    """A configured guest; besides the loss, 1 % of frames come twice, 1 % come late, and all take 2 ms."""
    impairment = Impairment(loss=loss, duplication=0.01, reordering=0.01, delay=0.002)
    mac = f"5a:94:ef:e4:0e:{round(loss * 1000):02x}"
    with LossyLink(directory, service.link_path, impairment) as line:
        with contextlib.closing(NamespaceGuest(directory, line.url, mac, probe, service.host)) as guest:
            guest.configure()
            yield guest, line


@pytest.mark.parametrize(("loss", "size", "floor"), LINES)
def test_data_arrives_whole_and_in_bounded_time(
    loss: float, size: int, floor: int, service: Service, tmp_path: Path, probe: Path, files: FileServer
) -> None:
    with guest_on_a_bad_line(loss, service, tmp_path, probe) as (guest, line):
        deadline = size / floor
        path = f"/upload/{guest.mac}"
        head = f"POST {path} HTTP/1.0\\r\\nContent-Length: {size}\\r\\n\\r\\n"
        guest.sh(f"(printf '{head}'; {probe} random {size} 7) | busybox nc {HOST} {files.port}", deadline)
        assert files.received[path] == (size, random_sha256(probe, size, 7))

        fetch = f"busybox wget -q -O - 'http://{HOST}:{files.port}/data?size={size}'"
        assert guest.sh(f"{fetch} | busybox sha256sum", deadline).split()[0] == files.sha256(size)

        counters = service.get(f"/v1/vms/{service.vm(guest.mac)['id']}")["counters"]
        assert counters["tcp.retransmits"] > 0
        assert "tcp.timeouts" not in counters
    for direction in (FROM_GUEST, TO_GUEST):
        tally = line.tallies[direction]
        assert min(tally.lost, tally.duplicated, tally.reordered) > 0, f"{direction} was no bad line: {tally}"


def test_connections_end_on_both_sides(service: Service, tmp_path: Path, probe: Path, files: FileServer) -> None:
    """SYN, FIN and their acknowledgments get lost too."""
    with guest_on_a_bad_line(0.05, service, tmp_path, probe) as (guest, _):
        vm = f"/v1/vms/{service.vm(guest.mac)['id']}"
        before = service.get(vm)["open_files"]
        fetch = f"busybox wget -q -O /dev/null 'http://{HOST}:{files.port}/data?size=1000'"
        guest.sh(f"for i in $(seq 20); do {fetch} & done; wait")
        wait_for(lambda: "tcp.flows" not in service.get(vm)["counters"], TIME_WAIT, "the flows to end")
        after = service.get(vm)
        assert after["open_files"] <= before
        assert after["counters"]["tcp.opened_by_guest"] == 20
        assert "tcp.resets_sent" not in after["counters"]
        assert guest.sh("busybox netstat -tn | grep -c ESTABLISHED || true").strip() == "0"
