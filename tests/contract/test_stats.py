"""gvproxy's ``/stats``: its whole tree of counters, by name, with what Moorage counts of it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import gvproxy_stats
from tests.guests.guest import Guest
from tests.guests.namespace import NamespaceGuest
from tests.guests.service import Service
from tests.guests.waiting import wait_for

ROOT = Path(__file__).parents[2]
NAMES = (Path(__file__).parent / "gvproxy-counters.txt").read_text().split()
"""Every leaf of a running gvproxy's answer."""


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Every counter of a tree, by its full name, in the tree's order."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{path}.{key}" if path else key)


def stats(service: Service) -> dict[str, int]:
    return dict(leaves(service.get("/stats")))


def test_the_document_has_the_table_that_the_code_has() -> None:
    """a counter that Moorage keeps is real, one that has no meaning here stays 0 and `docs/stats.md` says so"""
    text = (ROOT / "docs" / "stats.md").read_text()
    table = gvproxy_stats.table()
    assert text.endswith(table), f"docs/stats.md should end in:\n{table}"


def test_a_difference_of_counters_is_never_negative() -> None:
    tree = gvproxy_stats.tree({"link.tx_frames": 5, "arp.replies": 7, "tcp.flows": 3, "tcp.time_wait": 1})
    assert tree["IP"]["PacketsSent"] == 0
    assert tree["TCP"]["CurrentEstablished"] == 2


@pytest.mark.guest
def test_stats_has_every_counter_of_gvproxy_and_no_other(service: Service) -> None:
    """`/stats`: nested counters ARP, ICMP, IGMP, IP, NICs, TCP, UDP, DroppedPackets + BytesSent (to VMs),
    BytesReceived"""
    assert len(NAMES) == 172
    assert list(stats(service)) == NAMES


@pytest.mark.guest
def test_every_counter_is_made_of_ones_that_workers_keep(service: Service, guest: Guest) -> None:
    guest.sh("ping -c 1 -W 5 192.168.127.1")
    kept = wait_for(service.counters, 5.0, "a worker's counters")
    named = {name for source in gvproxy_stats.SOURCES.values() for _, name in gvproxy_stats.terms(source)}
    assert named <= kept.keys()


@pytest.mark.guest
def test_what_a_guest_does_is_counted(service: Service, guest: Guest) -> None:
    before = stats(service)
    guest.sh("ping -c 3 -i 0.2 -W 5 192.168.127.1")
    guest.attempt("nc -w 1 192.168.127.254 9")  # nobody listens there
    after = stats(service)
    grown = {name: after[name] - before[name] for name in NAMES}
    assert grown["ICMP.V4.PacketsReceived.ICMPv4PacketStats.EchoRequest"] == 3
    assert grown["ICMP.V4.PacketsSent.ICMPv4PacketStats.EchoReply"] == 3
    assert grown["TCP.PassiveConnectionOpenings"] == grown["TCP.FailedConnectionAttempts"] == 1
    assert grown["TCP.ResetsSent"] == 1
    assert grown["IP.PacketsReceived"] == grown["IP.ValidPacketsReceived"] == grown["IP.PacketsDelivered"] >= 4
    assert grown["IP.PacketsSent"] >= 4
    assert grown["NICs.Rx.Bytes"] == grown["BytesReceived"] > 4 * 40
    assert grown["NICs.Tx.Bytes"] == grown["BytesSent"] > 4 * 40
    assert after["ARP.RequestsReceived"] >= after["ARP.OutgoingRepliesSent"] >= 1
    assert after["UDP.PacketsReceived"] >= 2  # DHCP
    assert after["UDP.PacketsSent"] >= 2
    assert after["TCP.CurrentEstablished"] == 0


@pytest.mark.guest
def test_groups_that_a_guest_joins_and_connections_that_it_resets_are_counted(service: Service, guest: Guest) -> None:
    """a counter that Moorage keeps is real"""
    assert isinstance(guest, NamespaceGuest)
    before = stats(service)
    with service.host.entered():
        server = socket.create_server(("127.0.0.1", 0))
    with server, guest.namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
        for group in range(3):
            joined = socket.inet_aton(f"239.1.2.{group}") + socket.inet_aton("192.168.127.2")
            member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        with socket.create_connection(("192.168.127.254", server.getsockname()[1]), 10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    grown = ["TCP.EstablishedResets", "IGMP.PacketsReceived.IGMPPacketStats.V3MembershipReport"]
    grown.append("IP.OptionRouterAlertReceived")
    wait_for(lambda: all(stats(service)[name] > before[name] for name in grown), 10.0, "the counters")


@pytest.mark.guest
def test_a_vm_that_has_left_stays_in_the_sums(service: Service, guest: Guest) -> None:
    """summed over workers ... counters of VMs that have left stay"""
    guest.sh("ping -c 1 -W 5 192.168.127.1")
    before = stats(service)
    guest.close()
    wait_for(lambda: not service.get("/v1/vms")["vms"], 10.0, "the VM to leave")
    after = stats(service)
    for name in ("BytesSent", "BytesReceived", "ICMP.V4.PacketsReceived.ICMPv4PacketStats.EchoRequest"):
        assert after[name] >= before[name] > 0
