"""Packets around DHCP messages."""

from __future__ import annotations

from ipaddress import IPv4Address

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dhcp_client import BROADCAST, Outgoing
from agent.dhcp_message import ANY
from agent.dhcp_port import pull_packet, push_packet

SERVER = IPv4Address("192.168.127.1")


def reply(payload: bytes = b"message", sport: int = 67) -> bytes:
    udp = dpkt.udp.UDP(sport=sport, dport=68, data=payload)
    udp.ulen = len(udp)
    return bytes(dpkt.ip.IP(src=SERVER.packed, dst=BROADCAST.packed, p=17, data=udp))


@given(st.binary(max_size=400))
def test_a_packet_is_one_to_others_checksums_included(payload: bytes) -> None:
    packet = push_packet(Outgoing(payload, ANY, BROADCAST))
    parsed = dpkt.ip.IP(packet)
    assert (parsed.src, parsed.dst, parsed.len) == (ANY.packed, BROADCAST.packed, len(packet))
    assert (parsed.data.sport, parsed.data.dport, parsed.data.data) == (68, 67, payload)
    sums = parsed.sum, parsed.data.sum
    parsed.sum = parsed.data.sum = 0
    assert bytes(parsed) == packet
    assert (parsed.sum, parsed.data.sum) == sums


def test_padding_behind_the_packet_is_no_part_of_the_message() -> None:
    assert pull_packet(reply() + bytes(20)) == b"message"


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        reply()[:19],
        reply()[:27],
        reply()[:-1],
        reply(sport=53),
        b"\x44" + reply()[1:],
        b"\x4f" + reply()[1:],
        reply()[:24] + b"\x00\x07" + reply()[26:],
        reply()[:24] + b"\x00\x10" + reply()[26:],
    ],
)
def test_a_packet_whose_lengths_do_not_fit_is_none(packet: bytes) -> None:
    assert pull_packet(packet) is None
