"""UDP through the engine: mappings, errors, limits, fragments."""

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.framebed import GATEWAY_IP, GUEST_IP, REMOTE_IP, UDP, Bed, attempt, fragments, udp, v4, wide
from worker.upcalls import Action

OTHER_IP = "203.0.113.8"
UDP_IDLE = 0.5
"""s"""


def served(bed: Bed, dst: str = REMOTE_IP, dport: int = 80) -> socket.socket:
    """A server of the host that the guest reaches as `dst`."""
    server = bed.udp_server()
    bed.allow(UDP, server.getsockname()[1], dst, dport)
    return server


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 8_000, 65_507])
def test_a_datagram_goes_there_and_back(bed: Bed, size: int) -> None:
    server = served(bed)
    bed.engine.map_address(wide(REMOTE_IP), wide("127.0.0.1"))
    payload = random.Random(size).randbytes(size)
    whole = udp(payload, 80)
    bed.send(*(fragments(whole, *range(1480, size + 8, 1480)) if size > 1472 else [whole]))
    received, guest = bed.receive_from(server)
    assert received == payload
    server.sendto(payload, guest)
    port = server.getsockname()[1]
    if size <= 1472:
        assert bed.expect_udp() == (REMOTE_IP, port, payload)
    else:
        assert collect(bed, size + 8)[8:] == payload


def collect(bed: Bed, size: int) -> bytes:
    """The payload of an IPv4 datagram that comes in fragments."""
    data = bytearray(size)
    have = 0
    while have < size:
        packet = bed.expect(lambda ip: bytes(ip.dst) == v4(GUEST_IP))
        raw = bytes(packet)
        offset = (int.from_bytes(raw[6:8], "big") & 0x1FFF) * 8
        more = bool(raw[6] & 0x20)
        assert more == (offset + len(raw) - 20 < size)
        data[offset : offset + len(raw) - 20] = raw[20:]
        have += len(raw) - 20
    return bytes(data)


def test_one_socket_of_the_host_serves_all_destinations_of_a_guests_port(bed: Bed) -> None:
    first, second = served(bed), served(bed, OTHER_IP)
    bed.send(udp(b"one", 80), udp(b"two", 80, OTHER_IP), udp(b"three", 80, sport=5001))
    one, address = bed.receive_from(first)
    assert (one, bed.receive_from(second)) == (b"one", (b"two", address))
    three, other_address = bed.receive_from(first)
    assert three == b"three"
    assert other_address != address
    assert bed.counter("udp.flows") == 2


def test_anybody_may_answer_a_mapping(bed: Bed) -> None:
    server, stranger = served(bed), bed.udp_server()
    bed.send(udp(b"hello", 80))
    _, guest = bed.receive_from(server)
    stranger.sendto(b"from elsewhere", guest)
    assert bed.expect_udp() == ("127.0.0.1", stranger.getsockname()[1], b"from elsewhere")


@pytest.mark.parametrize("port", [53, 123])
def test_a_mapping_that_asked_one_question_ends_with_its_answer(bed: Bed, port: int) -> None:
    server = served(bed, dport=port)
    bed.send(udp(b"one?", port), udp(b"two?", port))
    _, guest = bed.receive_from(server)
    bed.receive_from(server)
    server.sendto(b"one!", guest)
    bed.expect_udp()
    assert bed.counter("udp.flows") == 1
    server.sendto(b"two!", guest)
    bed.expect_udp()
    assert bed.counter("udp.flows") == 0


def test_a_closed_port_of_the_host_comes_back_as_icmp(bed: Bed) -> None:
    server = served(bed)
    bed.engine.map_address(wide(REMOTE_IP), wide("127.0.0.1"))
    port = server.getsockname()[1]
    server.close()
    bed.send(udp(b"anybody?", 80))
    source, quote = bed.expect_icmp(3, 3)
    assert source == REMOTE_IP
    assert quote[12:20] == v4(GUEST_IP) + v4(REMOTE_IP)
    assert quote[20:24] == (5000).to_bytes(2, "big") + port.to_bytes(2, "big")


def test_a_destination_without_a_route_comes_back_as_icmp(bed: Bed) -> None:
    # the host refuses to send to the broadcast address without being asked twice: an error of sendto itself
    bed.engine.set_verdict(UDP, wide(REMOTE_IP), 80, Action.CARRY, wide("255.255.255.255"), 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, pytest.raises(PermissionError):
        probe.sendto(b"", ("255.255.255.255", 80))
    bed.send(udp(b"hello", 80))
    source, quote = bed.expect_icmp(3, 13)
    assert source == GATEWAY_IP
    assert quote[12:20] == v4(GUEST_IP) + v4(REMOTE_IP)
    assert bed.counter("udp.send_errors") == 1


@pytest.fixture
def short_bed() -> Iterator[Bed]:
    """Where UDP mappings end soon."""
    bed = Bed(udp_idle=UDP_IDLE)
    yield bed
    bed.close()


@pytest.mark.parametrize("last", ["guest", "host"])
def test_a_mapping_that_was_idle_long_enough_ends_and_frees_its_port(short_bed: Bed, last: str) -> None:
    """RFC 4787 REQ-5, REQ-6: whichever side spoke last, the time counts from there."""
    bed = short_bed
    server = served(bed)
    bed.send(udp(b"first", 80))
    _, guest = bed.receive_from(server)
    idle_from = time.monotonic()
    bed.run_until(lambda: time.monotonic() > idle_from + UDP_IDLE / 2)
    spoke = time.monotonic()
    if last == "guest":
        bed.send(udp(b"second", 80))
        bed.receive_from(server)
    else:
        server.sendto(b"second", guest)
        bed.expect_udp()
    bed.run_until(lambda: bed.counter("udp.flows") == 0)
    assert time.monotonic() - spoke >= UDP_IDLE
    assert bed.counter("udp.expired") == bed.counter("udp.opened") == 1
    server.connect(guest)
    server.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        server.recv(1)
    bed.send(udp(b"again", 80))
    bed.settle()
    assert bed.counter("udp.opened") == 2


def test_a_client_of_a_forwarded_port_that_was_idle_long_enough_is_forgotten_and_the_port_is_not(
    short_bed: Bed,
) -> None:
    bed = short_bed
    port = bed.forward(UDP, 53)
    client = bed.udp_server()
    for opened in (1, 2):
        client.sendto(b"question", ("127.0.0.1", port))
        assert bed.expect_udp(53)[2] == b"question"
        assert bed.counter("udp.opened") == opened
        bed.run_until(lambda: bed.counter("udp.flows") == 0)
    assert bed.counter("udp.expired") == 2


def test_the_least_recently_used_mapping_makes_room(one_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (96, 96))  # 16 mappings, and as many connections
    bed = Bed()
    try:
        server = served(bed)
        bed.send(*(udp(b"", 80, sport=1 + n) for n in range(16)), udp(b"", 80, sport=1), udp(b"", 80, sport=99))
        bed.settle()
        assert bed.counter("udp.evicted") == 1
        assert {flow[2] for flow in bed.engine.flows()} == {1, *range(3, 17), 99}
        assert attempt(lambda: server.recvfrom(10)) is not None
    finally:
        bed.close()


def test_a_datagram_from_an_address_that_is_not_the_guests_is_refused(bed: Bed) -> None:
    served(bed)
    bed.send(udp(b"", 80, src="10.0.0.1"), udp(b"", 80, src=GATEWAY_IP), udp(b"", 80, src="127.0.0.1"))
    bed.settle()
    assert bed.counter("ipv4.bad_source") == 3
    assert bed.counter("udp.flows") == 0


def test_a_datagram_without_a_checksum_is_carried_and_one_with_a_wrong_one_is_not(bed: Bed) -> None:
    server = served(bed)
    plain = bytearray(udp(b"plain", 80))
    wrong = bytearray(plain)
    plain[40:42] = b"\0\0"
    wrong[40] ^= 1
    bed.send(bytes(wrong), bytes(plain))
    assert bed.receive_from(server)[0] == b"plain"
    assert bed.counter("udp.bad_checksum") == 1


def test_a_length_field_shorter_than_the_packet_cuts_it_and_a_longer_one_is_an_error(bed: Bed) -> None:
    server = served(bed)
    for ulen in (0, 7, 8 + 6):
        frame = bytearray(udp(b"hello", 80))
        frame[38:40] = ulen.to_bytes(2, "big")
        bed.send(bytes(frame))
    short = bytearray(udp(b"hello", 80))
    short[38:42] = (8 + 4).to_bytes(2, "big") + b"\0\0"
    bed.send(bytes(short))
    assert bed.receive_from(server)[0] == b"hell"
    assert bed.counter("udp.malformed") == 3


def test_a_slow_guest_keeps_datagrams_in_the_hosts_socket(one_bed: Bed) -> None:
    bed = one_bed
    server = served(bed)
    bed.send(udp(b"", 80))
    _, guest = bed.receive_from(server)
    bed.reading = False
    for _ in range(3_000):  # more than the link and the queue before it hold
        server.sendto(bytes(1400), guest)
        bed.turn()
    assert bed.counter("link.blocked")
    assert bed.counter("link.tx_dropped") == 0
    bed.reading = True
    bed.expect_udp()


def test_a_busy_socket_of_the_host_is_given_a_longer_queue(bed: Bed) -> None:
    server = served(bed)
    bed.send(udp(b"", 80))
    _, guest = bed.receive_from(server)
    limits = [int(Path(f"/proc/sys/net/core/rmem_{which}").read_text()) for which in ("default", "max")]
    before, after = (2 * min(limit, 1 << 20) // 1024 for limit in (limits[0] // 2, limits[1]))
    for burst in (min(64, before), after * 3 // 4):  # each datagram counts for less than 1 KiB with all its overhead
        taken = bed.counter("flow.bytes_to_guest")
        for _ in range(burst):
            server.sendto(b"?", guest)
        bed.settle()
        assert bed.counter("flow.bytes_to_guest") == taken + burst
