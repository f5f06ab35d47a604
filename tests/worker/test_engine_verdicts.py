"""What Python decides about destinations, and what becomes of the traffic to them."""

import socket
from typing import Any

import pytest
from dpkt.tcp import TH_ACK, TH_RST, TH_SYN

from tests.worker.framebed import (
    BROADCAST,
    GATEWAY_IP,
    GUEST_IP,
    GUEST_MAC,
    REMOTE_IP,
    TCP,
    UDP,
    Bed,
    arp,
    ethernet,
    ipv4,
    udp,
    wide,
)
from tests.worker.guest_tcp import GuestTcp
from worker.upcalls import Action, Upcall

MAX_UPCALLS = 1024


def test_an_unknown_destination_is_asked_for_once_and_its_frame_comes_back(bed: Bed) -> None:
    server = bed.tcp_server()
    guest = GuestTcp(bed)
    guest.syn()
    kind, proto, dst, dport, frame = bed.expect_upcall(Upcall.VERDICT)
    assert (kind, proto, dst, dport) == (Upcall.VERDICT, TCP, wide(REMOTE_IP), 80)
    bed.allow(TCP, server.getsockname()[1])
    bed.engine.inject(frame)
    guest.take_syn(guest.hear(TH_SYN | TH_ACK))
    GuestTcp(bed, sport=40001).open()
    assert bed.counter("upcalls.verdicts") == 1
    bed.engine.clear_verdicts()
    GuestTcp(bed, sport=40002).syn()
    bed.expect_upcall(Upcall.VERDICT)


def test_a_verdict_holds_for_one_protocol_address_and_port(bed: Bed) -> None:
    bed.judge(UDP, Action.DROP)
    for frame in (udp(b"", 81), udp(b"", 80, "203.0.113.8"), GuestTcp(bed).segment(TH_SYN)):
        bed.send(frame)
        assert bed.expect_upcall(Upcall.VERDICT)[4] == frame
    bed.send(udp(b"", 80))
    bed.settle()
    assert not [upcall for upcall in bed.upcalls if upcall[0] == Upcall.VERDICT]


def packet_to(bed: Bed, proto: int) -> bytes:
    return GuestTcp(bed).segment(TH_SYN) if proto == TCP else udp(b"hello", 80)


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_unreachable_is_told_by_icmp_that_quotes_the_packet(bed: Bed, proto: int) -> None:
    bed.judge(proto, Action.UNREACHABLE)
    frame = packet_to(bed, proto)
    bed.send(frame)
    assert bed.expect_icmp(3, 0) == (GATEWAY_IP, frame[14 : 14 + 28])


def test_a_refused_datagram_is_told_by_icmp_from_its_destination(bed: Bed) -> None:
    bed.judge(UDP, Action.REFUSE)
    frame = udp(b"hello", 80)
    bed.send(frame)
    assert bed.expect_icmp(3, 3) == (REMOTE_IP, frame[14 : 14 + 28])


def test_a_refused_connection_is_told_by_reset(bed: Bed) -> None:
    bed.judge(TCP, Action.REFUSE)
    guest = GuestTcp(bed)
    guest.syn()
    assert guest.hear(TH_RST | TH_ACK).ack == guest.next


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_dropped_is_silent_and_counted(bed: Bed, proto: int) -> None:
    bed.judge(proto, Action.DROP)
    bed.send(packet_to(bed, proto))
    bed.settle()
    assert bed.inbox == []
    assert bed.counter("tcp.refused" if proto == TCP else "udp.refused") == 1


def test_the_hosts_unreachable_network_is_told_by_icmp(bed: Bed) -> None:
    # a TCP connection to the limited broadcast address: Linux says ENETUNREACH
    bed.engine.set_verdict(TCP, wide(REMOTE_IP), 80, Action.CARRY, wide("255.255.255.255"), 80)
    with socket.socket() as probe, pytest.raises(OSError, match="unreachable"):
        probe.connect(("255.255.255.255", 80))
    frame = packet_to(bed, TCP)
    bed.send(frame)
    assert bed.expect_icmp(3, 0) == (GATEWAY_IP, frame[14 : 14 + 28])
    assert bed.counter("tcp.flows") == 0


def test_a_local_connection_comes_up_as_a_stream(bed: Bed) -> None:
    bed.judge(TCP, Action.LOCAL)
    guest = GuestTcp(bed).open()
    kind, fd, src, sport, dst, dport = bed.expect_upcall(Upcall.STREAM)
    service = bed.keep(socket.socket(fileno=fd))
    assert (kind, src, sport, dst, dport) == (Upcall.STREAM, wide(GUEST_IP), guest.sport, wide(REMOTE_IP), 80)
    guest.write(b"question")
    assert bed.receive(service, 8) == b"question"
    service.send(b"answer")
    assert guest.read(6) == b"answer"
    service.close()
    guest.hear_fin()


def test_a_local_datagram_comes_up_as_its_frame(bed: Bed) -> None:
    bed.judge(UDP, Action.LOCAL)
    bed.send(frame := udp(b"question", 80))
    assert bed.expect_upcall(Upcall.FRAME) == (Upcall.FRAME, frame)


def echo(dst: str) -> bytes:
    return ipv4(b"\x08\x00\xf7\xff" + bytes(4), dst, proto=1)


def test_what_needs_thought_comes_up(bed: Bed) -> None:
    request: Any = arp(5)
    dhcp = udp(b"discover", 67, "255.255.255.255", src="0.0.0.0")
    bed.send(request, dhcp, echo(GATEWAY_IP), echo(REMOTE_IP))
    assert bed.expect_upcall(Upcall.FRAME)[1] == request
    assert bed.expect_upcall(Upcall.FRAME)[1] == dhcp
    assert bed.expect_upcall(Upcall.FRAME)[1] == echo(GATEWAY_IP)
    assert bed.expect_upcall(Upcall.ECHO)[1] == echo(REMOTE_IP)


def test_a_new_mac_or_address_of_the_guest_is_told_once(bed: Bed) -> None:
    bed.judge(UDP, Action.DROP)
    bed.send(arp(), arp(), udp(b"", 80), udp(b"", 80))
    bed.settle()
    told = [upcall for upcall in bed.upcalls if upcall[0] == Upcall.GUEST]
    assert told == [(Upcall.GUEST, GUEST_MAC, b""), (Upcall.GUEST, GUEST_MAC, wide(GUEST_IP))]
    assert bed.engine.guest_mac == GUEST_MAC


def test_a_full_queue_of_upcalls_costs_counted_drops_and_no_memory(one_bed: Bed) -> None:
    bed = one_bed
    flood = bed.wire(*(arp(n) for n in range(MAX_UPCALLS + 100)))
    bed.link.send(flood)
    for _ in range(4):
        bed.engine.run(0)
    assert len(bed.engine.take_upcalls()) == MAX_UPCALLS
    assert bed.counter("upcalls.dropped") == 101  # one of them told of the guest's MAC
    bed.settle()


def test_the_end_of_the_link_is_told_though_the_queue_is_full(one_bed: Bed) -> None:
    bed = one_bed
    bed.link.send(bed.wire(*(arp(n) for n in range(MAX_UPCALLS + 100))))
    for _ in range(4):
        bed.engine.run(0)
    bed.link.shutdown(socket.SHUT_RDWR)
    for _ in range(4):
        bed.engine.run(0)
    assert bed.engine.take_upcalls()[-1] == (Upcall.LINK_CLOSED, "eof", True)


def test_a_local_connection_that_finds_the_queue_full_leaves_nothing_behind(one_bed: Bed) -> None:
    bed = one_bed
    bed.judge(TCP, Action.LOCAL)
    bed.link.send(bed.wire(*(arp(n) for n in range(MAX_UPCALLS))) + bed.wire(GuestTcp(bed).segment(TH_SYN)))
    for _ in range(4):
        bed.engine.run(0)
    assert bed.counter("tcp.flows") == 0
    bed.expect_icmp(3, 13)


def test_more_destinations_than_the_table_holds_are_asked_for_again(one_bed: Bed) -> None:
    for n in range(2000):
        one_bed.judge(UDP, Action.DROP, f"10.0.{n >> 8}.{n & 255}")
    assert 0 < one_bed.counter("verdicts.known") < 2048
    one_bed.send(udp(b"", 80, "10.0.7.207"))
    one_bed.settle()
    assert one_bed.counter("udp.refused") == 1


def test_icmp_errors_are_limited_in_rate(one_bed: Bed) -> None:
    bed = one_bed
    bed.judge(UDP, Action.REFUSE)
    bed.push(bed.wire(udp(b"", 80)) * 1500)
    bed.settle()
    assert 1000 <= bed.counter("icmp.tx_errors") < 1500
    assert bed.counter("icmp.tx_errors") + bed.counter("icmp.rate_limited") == 1500


def test_groups_are_not_answered(bed: Bed) -> None:
    group = ("255.255.255.255", "192.168.127.255", "224.0.0.1")
    for dst in group:
        guest = GuestTcp(bed, dst)
        bed.send(
            guest.segment(TH_SYN), guest.segment(TH_ACK), udp(b"", 80, dst), echo(dst), ipv4(b"x" * 8, dst, proto=99)
        )
    bed.send(ethernet(b"", 0x86DD, dst=BROADCAST))
    bed.settle()
    assert bed.inbox == []
    assert bed.counter("ipv4.bad_destination") == 2 * len(group)
