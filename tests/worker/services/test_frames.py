import dpkt
from hypothesis import given
from hypothesis import strategies as st

from worker.services.frames import pull_ipv4, pull_udp, push_ipv4

GATEWAY_MAC, GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xdd", b"\x5a\x94\xef\xe4\x0c\xee"
GATEWAY, GUEST = bytes([192, 168, 127, 1]), bytes([192, 168, 127, 2])


def udp_frame(payload: bytes, options: bytes = b"") -> bytes:
    udp = dpkt.udp.UDP(sport=68, dport=67, data=payload)
    udp.ulen = len(udp)
    ip = dpkt.ip.IP(src=GUEST, dst=GATEWAY, p=17, ttl=64, data=udp, opts=options)
    ip.hl = 5 + len(options) // 4
    ip.len = len(ip)
    return bytes(dpkt.ethernet.Ethernet(src=GUEST_MAC, dst=GATEWAY_MAC, data=ip, type=0x0800))


def test_a_datagram_is_read_with_its_options_and_without_ethernet_padding() -> None:
    packet = pull_ipv4(udp_frame(b"hello", options=b"\1\1\1\0") + bytes(20))
    assert packet is not None
    assert (packet.src, packet.dst, packet.src_mac, len(packet.header)) == (GUEST, GATEWAY, GUEST_MAC, 24)
    datagram = pull_udp(packet)
    assert datagram is not None
    assert (datagram.sport, datagram.dport, datagram.payload) == (68, 67, b"hello")


def test_no_cut_frame_is_read_as_a_datagram() -> None:
    frame = udp_frame(b"hello")
    for length in range(len(frame)):
        assert pull_ipv4(frame[:length]) is None


@given(st.binary(max_size=80), st.integers(0, 60), st.binary(max_size=4))
def test_no_bytes_raise(noise: bytes, at: int, patch: bytes) -> None:
    frame = udp_frame(noise)
    for candidate in (noise, frame[:at] + patch + frame[at + len(patch) :]):
        packet = pull_ipv4(candidate)
        if packet is not None:
            pull_udp(packet)


def test_a_message_over_the_mtu_leaves_in_fragments_that_fit() -> None:
    message = bytes(range(256)) * 20
    frames = push_ipv4(GATEWAY_MAC, GUEST_MAC, GATEWAY, GUEST, message, 7, 1500)
    packets = [dpkt.ip.IP(frame[14:]) for frame in frames]
    assert len(frames) == 4
    assert all(len(frame) <= 1514 for frame in frames)
    assert [bool(packet.mf) for packet in packets] == [True, True, True, False]
    assert b"".join(frame[34:] for frame in frames) == message
    assert [int.from_bytes(frame[20:22], "big") & 0x1FFF for frame in frames] == [0, 185, 370, 555]
    assert {packet.id for packet in packets} == {7}
    assert all(dpkt.in_cksum(frame[14:34]) == 0 for frame in frames)
