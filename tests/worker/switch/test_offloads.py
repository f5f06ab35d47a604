"""What a tap device leaves undone reaches every kind of link as it should be there: undone, or done."""

from __future__ import annotations

import os
import struct

import dpkt
import pytest

from tests.worker import vnet
from tests.worker.framebed import LINKS, TCP, UDP
from tests.worker.switch.lan import Port, Worker, lan

OFFLOADED = 0x01000000
TCP_CHECKSUM, UDP_CHECKSUM = 16, 6
MSS = 1448


def tcp(sender: Port, to: Port, payload: bytes, flags: int = dpkt.tcp.TH_ACK | dpkt.tcp.TH_PUSH) -> bytes:
    """A TCP packet with timestamps, its checksum zero."""
    options = bytes.fromhex("0101080a0000000100000000")
    segment = dpkt.tcp.TCP(sport=1, dport=2, seq=2**32 - 5000, flags=flags, opts=options, data=payload)
    segment.off = 8
    return sender.ipv4(to, bytes(segment), proto=TCP)


def without_ident(frame: bytes) -> bytes:
    """A packet's identification differs from segment to segment, and its header's checksum with it."""
    return frame[:18] + frame[20:24] + frame[26:]


@pytest.mark.parametrize("link", LINKS)
def test_a_packet_of_many_segments_arrives_as_the_link_can_take_it(link: str) -> None:
    with lan(2, ("tap-vnet", link)) as network:
        one, two = network.ports
        for size in (60_000, MSS + 1, MSS * 3):
            two.delivered.clear()
            message = vnet.partial(tcp(one, two, os.urandom(size)), TCP_CHECKSUM, MSS)
            expected = vnet.frames(message)
            one.link.send(message)
            network.run_until(lambda expected=expected: len(two.delivered) >= len(expected))  # type: ignore[misc]
            assert [without_ident(frame) for frame in two.delivered] == [without_ident(frame) for frame in expected]
            assert all(dpkt.in_cksum(frame[14:34]) == 0 for frame in two.delivered)


@pytest.mark.parametrize("link", LINKS)
def test_a_checksum_that_is_left_undone_is_filled_in_where_nobody_else_does(link: str) -> None:
    with lan(2, ("tap-vnet", link)) as network:
        one, two = network.ports
        datagram = struct.pack("!HHHH", 5, 6, 8 + 501, 0) + os.urandom(501)
        messages = [
            vnet.partial(tcp(one, two, b"to be summed"), TCP_CHECKSUM),
            vnet.partial(one.ipv4(two, datagram, proto=UDP), UDP_CHECKSUM),
        ]
        expected = [vnet.frames(message)[0] for message in messages]
        for message in messages:
            one.link.send(message)
        network.run_until(lambda: two.delivered == expected)


def test_many_such_packets_keep_their_order_on_a_link_with_little_room() -> None:
    with lan(2, ("tap-vnet", "datagram")) as network:
        one, two = network.ports
        messages = [vnet.partial(tcp(one, two, bytes([n]) * 60_000), TCP_CHECKSUM, MSS) for n in range(12)]
        for n, message in enumerate(messages):
            one.link.send(message)
            network.run_until(lambda n=n: len(two.delivered) >= (n + 1) * 42)  # type: ignore[misc]
        assert [frame[100] for frame in two.delivered] == [n for n in range(12) for _ in range(42)]


def test_a_forged_packet_of_many_segments_does_not_leave() -> None:
    with lan(3, ("tap-vnet", "stream32")) as network:
        one, two, three = network.ports
        packet = bytearray(tcp(one, two, bytes(9000)))
        packet[26:30] = bytes((192, 168, 127, three.number + 1))
        packet[24:26] = bytes(2)
        packet[24:26] = dpkt.in_cksum(bytes(packet[14:34])).to_bytes(2, "big")
        one.link.send(vnet.partial(bytes(packet), TCP_CHECKSUM, MSS))
        network.settle()
        assert two.delivered == []
        assert one.counter("switch.spoofed_ip") == 1


HOSTILE = {
    "no segment size": (1, 1, 0, 34, 16),
    "too many segments": (1, 1, 1, 34, 16),
    "segments over the MTU": (1, 1, 9000, 34, 16),
    "checksum before the packet": (1, 0, 0, 0, 3),
    "checksum behind the frame": (1, 0, 0, 34, 60_000),
    "both at their limits": (1, 0, 0, 65535, 65535),
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("link", ["stream32", "datagram"])
def test_a_header_that_makes_no_sense_costs_its_frame_alone(link: str, fields: tuple[int, int, int, int, int]) -> None:
    flags, gso, size, start, offset = fields
    with lan(2, (link, "tap-vnet")) as network:
        one, two = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        packet = tcp(two, one, os.urandom(5000 if gso else 500))
        frame = packet[:6] + worker.mac + packet[12:26] + worker.ip + packet[30:]
        message = vnet.HEADER.pack(flags, gso, 66, size, start, offset) + frame
        worker.sock.send((len(message) | OFFLOADED).to_bytes(4, "big") + message)
        last = one.mac + worker.mac + b"\x88\xb5the last"
        worker.send(last)
        network.run_until(lambda: last in one.delivered)
        assert one.delivered == [last]
        assert one.counter("link.tx_dropped") == 1


@pytest.mark.parametrize("gso", [vnet.GSO_UDP, 4, 5, 0x81, 0xFF])
@pytest.mark.parametrize("link", LINKS)
def test_what_no_guest_may_leave_uncut_reaches_no_other(link: str, gso: int) -> None:
    with lan(1, (link,)) as network:
        (one,) = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        packet = tcp(one, one, bytes(5000))
        frame = packet[:6] + worker.mac + packet[12:26] + worker.ip + packet[30:]
        message = vnet.HEADER.pack(1, gso, 66, 1000, 34, 16) + frame
        worker.sock.send((len(message) | OFFLOADED).to_bytes(4, "big") + message)
        network.run_until(lambda: one.counter("switch.rx_refused") == 1)


@pytest.mark.parametrize("size", [0, 9, 10, 23])
def test_an_offloaded_frame_too_short_for_its_headers_is_refused(size: int) -> None:
    with lan(1) as network:
        (one,) = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        worker.sock.send((size | OFFLOADED).to_bytes(4, "big") + bytes(size))
        network.run_until(lambda: one.counter("switch.rx_refused") == 1)
