"""Frames that are wrong: cut short, mislabelled, of unknown kinds. Each is counted, none does harm."""

import dpkt
import pytest
from dpkt.tcp import TH_ACK, TH_SYN

from tests.worker.framebed import GATEWAY_IP, GUEST_IP, TCP, UDP, Bed, ethernet, fragment, ipv4, udp, v4
from tests.worker.guest_tcp import GuestTcp
from worker.upcalls import Action


def kinds(bed: Bed) -> dict[str, bytes]:
    """A valid frame of each kind."""
    return {
        "tcp": GuestTcp(bed).segment(TH_SYN, opts=bytes.fromhex("020405b4 0402 0303 07 01")),
        "udp": udp(b"payload", 80),
        "icmp": ipv4(b"\x08\x00\xf7\xff" + bytes(4), GATEWAY_IP, proto=1),
        "fragment": fragment(b"payload!", 8, more=True),
    }


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp", "fragment"])
def test_a_frame_cut_at_any_length_is_counted_as_malformed(one_bed: Bed, kind: str) -> None:
    frame = kinds(one_bed)[kind]
    for length in range(len(frame)):
        one_bed.send(frame[:length])
    one_bed.settle()
    assert one_bed.counter("ethernet.malformed") == 14
    assert one_bed.counter("ipv4.malformed") == len(frame) - 14
    assert one_bed.inbox == []


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_a_packet_whose_total_length_cuts_it_is_counted_and_unanswered(one_bed: Bed, kind: str) -> None:
    one_bed.judge(TCP, Action.DROP)
    one_bed.judge(UDP, Action.DROP)
    frame = kinds(one_bed)[kind]
    whole = frame[34:]
    for length in range(len(whole)):
        one_bed.send(ipv4(whole[:length], proto=frame[23]))
    one_bed.settle()
    counters = one_bed.engine.counters()
    told = ("tcp.malformed", "tcp.bad_checksum", "udp.malformed", "udp.bad_checksum", "icmp.rx_other")
    assert sum(counters[name] for name in told) == len(whole)
    assert one_bed.inbox == []


@pytest.mark.parametrize(
    ("offset", "value", "counter"),
    [
        (14, 0x65, "ipv4.malformed"),  # IPv6 in disguise
        (14, 0x44, "ipv4.malformed"),  # a header of 16 bytes
        (14, 0x4F, "ipv4.malformed"),  # a header longer than the packet
        (16, 0xFF, "ipv4.malformed"),  # a length beyond the frame
        (18, 0x01, "ipv4.bad_checksum"),
        (24, 0x00, "ipv4.bad_checksum"),
        (41, 0x00, "udp.bad_checksum"),
    ],
)
def test_a_wrong_field_has_a_counter_of_its_own(one_bed: Bed, offset: int, value: int, counter: str) -> None:
    frame = bytearray(udp(b"", 80))
    frame[offset] = value if frame[offset] != value else value ^ 0x80
    one_bed.send(bytes(frame))
    one_bed.settle()
    assert one_bed.counter(counter) == 1
    assert one_bed.inbox == []


def test_a_segment_with_a_wrong_checksum_is_ignored(bed: Bed) -> None:
    frame = bytearray(GuestTcp(bed).segment(TH_ACK, b"data"))
    frame[-1] ^= 1
    bed.send(bytes(frame))
    bed.settle()
    assert bed.counter("tcp.bad_checksum") == 1
    assert bed.inbox == []


@pytest.mark.parametrize("offset", range(0, 16))
def test_a_tcp_header_length_that_does_not_fit_is_malformed(one_bed: Bed, offset: int) -> None:
    segment = bytearray(GuestTcp(one_bed).segment(TH_ACK)[34:])
    segment[12] = offset << 4
    segment[16:18] = b"\0\0"
    pseudo = v4(GUEST_IP) + v4("203.0.113.7") + bytes([0, TCP]) + len(segment).to_bytes(2, "big")
    segment[16:18] = dpkt.in_cksum(pseudo + bytes(segment)).to_bytes(2, "big")
    one_bed.send(ipv4(bytes(segment), proto=TCP))
    one_bed.settle()
    assert one_bed.counter("tcp.malformed") == (offset != 5)


@pytest.mark.parametrize(
    "options", ["02", "0200", "0201", "02ff", "0800", "05", "0502", "0501", "03", "ff" * 20, "01" * 40]
)
def test_options_that_run_over_their_end_do_no_harm(one_bed: Bed, options: str) -> None:
    server = one_bed.tcp_server()
    one_bed.allow(TCP, server.getsockname()[1])
    raw = bytes.fromhex(options)
    guest = GuestTcp(one_bed)
    one_bed.send(guest.segment(TH_SYN, opts=raw + b"\1" * (-len(raw) % 4)))
    guest.hear(TH_SYN | TH_ACK)


def test_an_unknown_protocol_is_told_by_icmp(bed: Bed) -> None:
    frame = ipv4(b"12345678", proto=132)
    bed.send(frame, ipv4(b"1234567", proto=132))
    assert bed.expect_icmp(3, 2) == (GATEWAY_IP, frame[14 : 14 + 28])
    bed.settle()
    assert bed.inbox == []
    assert bed.counter("ipv4.unknown_protocol") == 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (0x11, "rx_query"),
        (0x12, "rx_v1_report"),
        (0x16, "rx_v2_report"),
        (0x17, "rx_leave"),
        (0x22, "rx_v3_report"),
        (0x13, "rx_other"),
    ],
)
def test_an_igmp_message_is_counted_by_its_type(one_bed: Bed, kind: int, name: str) -> None:
    message = bytes([kind, 0, 0, 0, 224, 0, 0, 251])
    message = message[:2] + dpkt.in_cksum(message).to_bytes(2, "big") + message[4:]
    one_bed.send(ipv4(message, "224.0.0.22", proto=2), ipv4(message[:7], "224.0.0.22", proto=2))
    one_bed.send(ipv4(message[:7] + b"?", "224.0.0.22", proto=2))
    one_bed.settle()
    assert one_bed.counter(f"igmp.{name}") == 1
    assert (one_bed.counter("igmp.malformed"), one_bed.counter("igmp.bad_checksum")) == (1, 1)
    assert one_bed.inbox == []


def test_options_of_a_header_are_counted_and_change_nothing(bed: Bed) -> None:
    alert, stamp, route, other = b"\x94\4\0\0", b"\x44\4\5\0", b"\7\3\4", b"\x82\2"
    for options in (b"\1" + route, alert + stamp, other + b"\0\x94", b"\x94", b"\x94\1", b"\x94\x09\0\0"):
        bed.send(optioned(udp(b"", 80), options))
    bed.settle()
    assert [bed.counter(f"ipv4.option_{name}") for name in ("record_route", "router_alert", "timestamp", "other")] == [
        1, 1, 1, 1,
    ]  # fmt: skip
    assert bed.counter("udp.rx_datagrams") == 6


def optioned(frame: bytes, options: bytes) -> bytes:
    """The frame with options in its IPv4 header."""
    options += bytes(-len(options) % 4)
    header = bytearray(frame[14:34] + options)
    header[0] += len(options) // 4
    header[2:4] = (len(frame) - 14 + len(options)).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = dpkt.in_cksum(bytes(header)).to_bytes(2, "big")
    return frame[:14] + bytes(header) + frame[34:]


def test_an_unknown_ethertype_is_counted(bed: Bed) -> None:
    bed.send(ethernet(b"", 0x88CC), ethernet(bytes(40), 0x86DD))
    bed.settle()
    assert bed.counter("ethernet.unknown_type") == 2


def test_a_quote_is_cut_to_the_longest_header_and_eight_bytes(bed: Bed) -> None:
    bed.judge(UDP, Action.REFUSE)
    header = bytearray(60)
    plain = udp(bytes(100), 80)
    header[:20] = plain[14:34]
    header[20:] = b"\1" * 40
    header[0] = 0x4F
    header[2:4] = (60 + 108).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = dpkt.in_cksum(bytes(header)).to_bytes(2, "big")
    bed.send(ethernet(bytes(header) + plain[34:]))
    assert bed.expect_icmp(3, 3)[1] == bytes(header) + plain[34:42]


def test_bytes_behind_the_packet_are_padding(bed: Bed) -> None:
    bed.judge(UDP, Action.REFUSE)
    frame = udp(b"", 80)
    bed.send(frame + bytes(18))
    assert bed.expect_icmp(3, 3)[1] == frame[14:42]
