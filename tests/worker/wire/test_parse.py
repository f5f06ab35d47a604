"""The datapath's parsers and writers: what is well formed is read, nothing else, and nothing behind its end."""

from __future__ import annotations

import struct

import dpkt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.wire.headers import Flag, Ipv4Error, Ipv4Packet, TcpSegment, UdpDatagram
from worker.wire.parse import (
    checksum,
    checksum_of_pieces,
    ethernet_frame,
    icmp_message,
    ipv4_packet,
    pseudo_checksum,
    read_ethernet,
    read_ipv4,
    read_tcp,
    read_udp,
    udp_datagram,
)

A, B = bytes([192, 168, 127, 2]), bytes([10, 0, 0, 1])
MAC, OTHER = bytes.fromhex("5a94ef e40cee".replace(" ", "")), bytes(6)


def slow_checksum(data: bytes) -> bytes:
    """RFC 1071 as it is written."""
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return (~total & 0xFFFF).to_bytes(2, "big")


def ipv4(payload: bytes = b"payload", **changes: int) -> bytes:
    """A header with some fields changed and a checksum that is right all the same."""
    fields = {"version": 4, "words": 5, "total": 20 + len(payload), "flags": 0} | changes
    head = struct.pack(
        ">BBHHHBB2x4s4s", fields["version"] << 4 | fields["words"], 0, fields["total"], 7, fields["flags"], 63, 17, A, B
    )
    options = bytes(max(fields["words"] - 5, 0) * 4)
    header = head + options
    return header[:10] + slow_checksum(header[: fields["words"] * 4]) + header[12:] + payload


def tcp(options: bytes = b"", payload: bytes = b"", words: int | None = None) -> bytes:
    words = 5 + len(options) // 4 if words is None else words
    return struct.pack(">HHIIBBHHH", 1, 2, 3, 4, words << 4, 0x10, 5, 0, 0) + options + payload


# --- checksums


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
@example(b"\xff" * 65535)
@example(b"\xff" * 131)
def test_the_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    assert checksum(data) == slow_checksum(data)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=150), max_size=5))
def test_a_checksum_may_be_taken_in_pieces_of_any_length(pieces: list[bytes]) -> None:
    assert checksum_of_pieces(pieces) == checksum(b"".join(pieces))


# --- Ethernet and IPv4


def test_an_ethernet_frame_is_written_as_it_is_read() -> None:
    frame = read_ethernet(ethernet_frame(MAC, OTHER, 0x0800, b"x"))
    assert frame is not None
    assert (frame.dst, frame.src, frame.ethertype, frame.payload) == (MAC, OTHER, 0x0800, b"x")
    assert read_ethernet(bytes(13)) is None


def test_an_ipv4_header_is_written_as_others_read_it() -> None:
    packet = ipv4_packet(A, B, 17, b"payload", 5, 0x4000)
    known = dpkt.ip.IP(packet)
    assert (known.src, known.dst, known.p, known.id, known.df, known.ttl) == (A, B, 17, 5, 1, 64)
    assert read_ipv4(packet) == Ipv4Packet(A, B, 17, b"payload", ident=5, dont_fragment=True)


def test_what_lies_behind_the_total_length_is_cut_off() -> None:
    packet = read_ipv4(ipv4() + b"ethernet padding")
    assert isinstance(packet, Ipv4Packet)
    assert packet.payload == b"payload"


def test_ipv4_options_are_skipped() -> None:
    packet = read_ipv4(ipv4(words=15, total=67))
    assert isinstance(packet, Ipv4Packet)
    assert packet.payload == b"payload"


@pytest.mark.parametrize(
    ("packet", "error"),
    [
        (b"", Ipv4Error.TRUNCATED),
        (ipv4()[:19], Ipv4Error.TRUNCATED),
        (ipv4()[:-1], Ipv4Error.TRUNCATED),
        (ipv4(total=65535), Ipv4Error.TRUNCATED),
        (ipv4(words=15, total=80)[:40], Ipv4Error.TRUNCATED),
        (ipv4(version=6), Ipv4Error.MALFORMED),
        (ipv4(words=4), Ipv4Error.MALFORMED),
        (ipv4(words=0), Ipv4Error.MALFORMED),
        (ipv4(total=19), Ipv4Error.MALFORMED),
        (ipv4(total=0), Ipv4Error.MALFORMED),
        (ipv4(words=15, total=59), Ipv4Error.MALFORMED),
        (ipv4()[:10] + b"\0\0" + ipv4()[12:], Ipv4Error.BAD_CHECKSUM),
    ],
)
def test_an_ipv4_header_that_lies_is_refused(packet: bytes, error: Ipv4Error) -> None:
    assert read_ipv4(packet) is error


@pytest.mark.parametrize(
    ("flags", "offset", "more", "dont"),
    [(0x2001, 8, True, False), (0x1FFF, 65528, False, False), (0x4000, 0, False, True)],
)
def test_fragments_are_told_apart(flags: int, offset: int, more: bool, dont: bool) -> None:
    packet = read_ipv4(ipv4(flags=flags))
    assert isinstance(packet, Ipv4Packet)
    assert (packet.fragment_offset, packet.more_fragments, packet.dont_fragment) == (offset, more, dont)


# --- UDP and ICMP


def test_a_udp_datagram_is_written_as_it_is_read() -> None:
    assert read_udp(udp_datagram(53, 1024, b"answer", 0xBEEF)) == UdpDatagram(53, 1024, b"answer")
    assert udp_datagram(53, 1024, b"", 0)[6:8] == b"\xff\xff", "a sum of zero means that there is none (RFC 768)"


@pytest.mark.parametrize(("length", "payload"), [(8, b""), (10, b"ab"), (11, b"abc")])
def test_the_length_field_of_udp_cuts_the_payload(length: int, payload: bytes) -> None:
    assert read_udp(struct.pack(">HHHH", 1, 2, length, 0) + b"abc") == UdpDatagram(1, 2, payload)


@pytest.mark.parametrize("length", [0, 7, 12, 65535])
def test_a_length_field_of_udp_that_lies_is_refused(length: int) -> None:
    assert read_udp(struct.pack(">HHHH", 1, 2, length, 0) + b"abc") is None
    assert read_udp(bytes(7)) is None


def test_the_pseudo_header_is_part_of_the_sum() -> None:
    datagram = udp_datagram(1, 2, b"odd", 0)[:6] + b"\0\0odd"
    expected = slow_checksum(A + B + bytes([0, 17]) + len(datagram).to_bytes(2, "big") + datagram)
    assert pseudo_checksum(A, B, 17, datagram) == expected


def test_an_icmp_message_carries_its_quote_and_a_right_sum() -> None:
    message = icmp_message(3, 4, 1400, b"quoted")
    assert message[:2] + message[4:] == bytes([3, 4]) + (1400).to_bytes(4, "big") + b"quoted"
    assert checksum(message) == b"\0\0"


# --- TCP


def test_every_option_that_is_understood_is_read_in_any_order() -> None:
    options = [
        struct.pack(">BBH", 2, 4, 1460),
        struct.pack(">BBB", 3, 3, 9),
        struct.pack(">BB", 4, 2),
        struct.pack(">BBII", 8, 10, 77, 88),
        b"\x01",
        b"\xfd\x04xx",
    ]
    for order in (options, options[::-1]):
        raw = b"".join(order)
        assert read_tcp(tcp(raw.ljust(28, b"\0"), b"data")) == TcpSegment(
            3, 4, Flag.ACK, 5, b"data", mss=1460, window_scale=9, sack_permitted=True, timestamp=(77, 88)
        )


def test_the_usual_layout_of_a_timestamp_is_read_like_any_other() -> None:
    stamp = struct.pack(">BBII", 8, 10, 77, 88)
    plain = read_tcp(tcp(stamp + b"\x01\x01"))
    assert plain == read_tcp(tcp(b"\x01\x01" + stamp))
    assert plain is not None
    assert plain.timestamp == (77, 88)


def test_sack_blocks_are_read_up_to_four() -> None:
    numbers = range(100, 108)
    segment = read_tcp(tcp(struct.pack(">BBBB8I", 1, 1, 5, 34, *numbers)))
    assert segment is not None
    assert segment.sack == ((100, 101), (102, 103), (104, 105), (106, 107))


def test_a_sack_option_of_odd_length_gives_its_whole_blocks() -> None:
    segment = read_tcp(tcp(struct.pack(">BBII6sxxxx", 5, 16, 1, 2, b"crumbs")))
    assert segment is not None
    assert segment.sack == ((1, 2),)


def test_a_window_scale_beyond_14_counts_as_14() -> None:
    segment = read_tcp(tcp(b"\x03\x03\xff\x00"))
    assert segment is not None
    assert segment.window_scale == 14


@pytest.mark.parametrize(
    "options",
    [
        b"\x01\x02\x04\x05",
        b"\x02\x00\x05\xb4",
        b"\x02\x01\x05\xb4",
        b"\x08\xff\x00\x00",
        b"\x01\x01\x01\x02",
        b"\x02\x03\x05\xb4",
    ],
)
def test_an_option_that_lies_about_its_length_is_not_believed(options: bytes) -> None:
    segment = read_tcp(tcp(options.ljust(4, b"\0"), b"data"))
    assert segment is not None
    assert (segment.mss, segment.timestamp, segment.payload) == (None, None, b"data")


def test_nothing_is_read_behind_the_end_of_the_options() -> None:
    segment = read_tcp(tcp(b"\x00\x02\x04\x05\xb4\x00\x00\x00"))
    assert segment is not None
    assert segment.mss is None


@pytest.mark.parametrize("words", [0, 4, 6, 15])
def test_a_tcp_header_that_lies_about_its_length_is_refused(words: int) -> None:
    assert read_tcp(tcp(words=words)) is None
    assert read_tcp(tcp()[:19]) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_no_bytes_whatever_upset_a_parser(data: bytes) -> None:
    for parse in (read_ethernet, read_ipv4, read_udp, read_tcp):
        parse(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=20))
def test_no_options_whatever_upset_the_parser_or_move_the_payload(options: bytes, payload: bytes) -> None:
    padded = options.ljust(-(-len(options) // 4) * 4, b"\0")
    segment = read_tcp(tcp(padded, payload))
    assert segment is not None
    assert segment.payload == payload
    assert len(segment.sack) <= 4
