"""gvproxy's ``-pcap`` and ``stack.capture-file``, and what is better here."""

from __future__ import annotations

from pathlib import Path

import dpkt
import pytest

from tests.guests.gvproxy import MAC, Gvproxy
from tests.guests.host import make_host
from tests.guests.pcapng import FROM_GUEST, interfaces, packets
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

DHCP = {(68, 67), (67, 68)}


def ports(file: Path) -> set[tuple[int, int]]:
    """Of the UDP datagrams in a capture."""
    found = set()
    for packet in packets(file.read_bytes()):
        ip = dpkt.ethernet.Ethernet(packet.frame).data
        if isinstance(ip, dpkt.ip.IP) and isinstance(ip.data, dpkt.udp.UDP):
            found.add((ip.data.sport, ip.data.dport))
    return found


@pytest.mark.parametrize(
    ("flags", "yaml"),
    [
        (("-pcap", "DIR/capture"), ""),
        (("-pcap", "DIR/capture", "-config", "DIR/config"), "stack: {capture-file: DIR/other}"),
        (("-config", "DIR/config"), "stack: {capture-file: DIR/capture}"),
    ],
)
def test_all_traffic_goes_to_the_file_with_ethernet_headers(flags: tuple[str, ...], yaml: str, tmp_path: Path) -> None:
    """`-pcap` is ignored with `-config` there; here it works, and the capture has Ethernet headers and all traffic."""
    (tmp_path / "config").write_text(yaml.replace("DIR", str(tmp_path)))
    file = tmp_path / "capture"
    with make_host() as host, Gvproxy(host, tmp_path, *flags, "-listen-qemu", "unix://DIR/qemu.sock") as running:
        vm = running.attach()
        wait_for(lambda: ports(file) == DHCP, 10.0, "the VM's question and the answer in the file")
        vm.close()
        assert running.ended() == 0
    assert len(interfaces(file.read_bytes())) == 1
    first = packets(file.read_bytes())[0]
    assert (first.direction, first.frame[6:12].hex(":")) == (FROM_GUEST, MAC)
    assert not (tmp_path / "other").exists()
