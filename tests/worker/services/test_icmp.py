import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.services import icmp
from worker.services.frames import Packet, pull_ipv4
from worker.services.icmp import IcmpResponder

GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xee"
GATEWAY, GUEST, ELSEWHERE = (bytes([192, 168, 127, last]) for last in (1, 2, 9))


def echo_packet(dst: bytes = GATEWAY, data: bytes = b"data", kind: int = 8) -> Packet:
    message = dpkt.icmp.ICMP(type=kind, data=dpkt.icmp.ICMP.Echo(id=0x1234, seq=7, data=data))
    header = dpkt.ip.IP(src=GUEST, dst=dst, p=1, ttl=64)
    return Packet(GUEST_MAC, GUEST, dst, 1, 64, bytes(header)[:20], bytes(message))


@pytest.fixture
def responder() -> IcmpResponder:
    return IcmpResponder("5a:94:ef:e4:0c:dd", "192.168.127.1", 1500)


def test_the_gateway_answers_an_echo_with_the_same_bytes(responder: IcmpResponder) -> None:
    (frame,) = responder.receive(echo_packet())
    packet = pull_ipv4(frame)
    assert packet is not None
    assert (frame[:6], packet.src, packet.dst) == (GUEST_MAC, GATEWAY, GUEST)
    reply = dpkt.icmp.ICMP(packet.payload)
    assert (reply.type, reply.data.id, reply.data.seq, bytes(reply.data.data)) == (0, 0x1234, 7, b"data")
    assert dpkt.in_cksum(packet.payload) == 0


def test_a_large_echo_comes_back_in_fragments(responder: IcmpResponder) -> None:
    frames = responder.receive(echo_packet(data=bytes(8000)))
    assert len(frames) == 6
    assert sum(len(frame) - 34 for frame in frames) == 8008


def test_nothing_else_is_answered(responder: IcmpResponder) -> None:
    for packet in (echo_packet(kind=0), echo_packet(kind=13), echo_packet(dst=ELSEWHERE)):
        assert responder.receive(packet) == []
    assert responder.counters["icmp.ignored"] == 3


def test_an_error_quotes_what_it_is_about(responder: IcmpResponder) -> None:
    about = echo_packet(dst=ELSEWHERE)
    (frame,) = responder.error(about, icmp.UNREACHABLE, icmp.HOST_UNREACHABLE)
    packet = pull_ipv4(frame)
    assert packet is not None
    assert (packet.src, packet.dst) == (GATEWAY, GUEST)
    assert packet.payload[:2] == bytes([3, 1])
    assert packet.payload[8:] == about.header + about.payload[:8]
    assert dpkt.in_cksum(packet.payload) == 0


@given(st.binary(max_size=40), st.integers(0, 255))
def test_no_bytes_raise(noise: bytes, kind: int) -> None:
    responder = IcmpResponder("5a:94:ef:e4:0c:dd", "192.168.127.1", 576)
    for payload in (noise, bytes([kind]) + noise, bytes([8, 0]) + noise):
        responder.receive(Packet(GUEST_MAC, GUEST, GATEWAY, 1, 64, bytes(20), payload))
