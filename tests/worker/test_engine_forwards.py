"""Forwarded ports: the host comes in, as the guest and the client see it."""

import socket

import pytest
from dpkt.tcp import TH_ACK, TH_RST, TH_SYN

from tests.worker.framebed import GATEWAY_IP, GUEST_IP, TCP, UDP, Bed, udp, v4
from tests.worker.guest_tcp import GuestTcp


def called(bed: Bed, dport: int = 80) -> GuestTcp:
    """The guest's end of a connection that a client of the host has just opened."""
    syn = bed.expect(lambda ip: ip.tcp.flags == TH_SYN and ip.tcp.dport == dport)
    bed.inbox.append(type("Frame", (), {"data": syn}))
    assert syn.src == v4(GATEWAY_IP), "a client on loopback must appear as the gateway"
    return GuestTcp(bed, GATEWAY_IP, syn.tcp.sport, dport)


def test_a_client_of_a_forwarded_port_talks_to_the_guest(bed: Bed) -> None:
    client = bed.connect(bed.forward(TCP, 80))
    guest = called(bed).answer()
    client.send(b"question")
    assert guest.read(8) == b"question"
    guest.write(b"answer")
    assert bed.receive(client, 6) == b"answer"
    assert bed.counter("tcp.opened_by_host") == 1


def test_the_guest_sees_the_clients_own_port(bed: Bed) -> None:
    client = bed.connect(bed.forward(TCP, 80))
    assert called(bed).dport == client.getsockname()[1]


def test_a_guest_that_refuses_resets_the_client(bed: Bed) -> None:
    client = bed.connect(bed.forward(TCP, 80))
    guest = called(bed)
    guest.expected = guest.hear(TH_SYN).seq + 1
    bed.send(guest.segment(TH_RST | TH_ACK, seq=0))
    bed.run_until(lambda: bed.is_reset(client))
    assert bed.counter("tcp.flows") == 0


def test_a_reset_that_acknowledges_nothing_of_ours_is_ignored(bed: Bed) -> None:
    client = bed.connect(bed.forward(TCP, 80))
    guest = called(bed)
    bed.send(guest.segment(TH_RST, seq=0))
    bed.settle()
    guest.answer().write(b"still here")
    assert bed.receive(client, 10) == b"still here"


def test_what_a_client_sent_before_the_guest_answered_arrives(bed: Bed) -> None:
    client = bed.connect(bed.forward(TCP, 80))
    client.send(b"early")
    client.shutdown(socket.SHUT_WR)
    guest = called(bed).answer()
    assert guest.read(5) == b"early"


def test_a_removed_forward_refuses_new_clients_and_keeps_the_old_ones(bed: Bed) -> None:
    port = bed.forward(TCP, 80)
    client = bed.connect(port)
    guest = called(bed).answer()
    bed.engine.remove_listener(1)
    with socket.socket() as late, pytest.raises(ConnectionRefusedError):
        late.connect(("127.0.0.1", port))
    guest.write(b"still here")
    assert bed.receive(client, 10) == b"still here"
    with pytest.raises(KeyError):
        bed.engine.remove_listener(1)


def test_many_clients_waiting_at_once_are_all_accepted(one_bed: Bed) -> None:
    port = one_bed.forward(TCP, 80)
    clients = [one_bed.connect(port) for _ in range(100)]
    one_bed.run_until(lambda: one_bed.counter("tcp.opened_by_host") == len(clients))


def test_a_client_of_a_forwarded_udp_port_talks_to_the_guest(bed: Bed) -> None:
    port = bed.forward(UDP, 7)
    clients = [bed.udp_server() for _ in range(2)]
    for n, client in enumerate(clients):
        client.sendto(b"%d?" % n, ("127.0.0.1", port))
    for n, client in enumerate(clients):
        source, sport, payload = bed.expect_udp(7)
        assert (source, sport, payload) == (GATEWAY_IP, client.getsockname()[1], b"%d?" % n)
        bed.send(udp(b"%d!" % n, sport, GATEWAY_IP, sport=7))
        assert bed.receive_from(client) == (b"%d!" % n, ("127.0.0.1", port))


def test_an_empty_datagram_is_carried_both_ways(bed: Bed) -> None:
    port = bed.forward(UDP, 7)
    client = bed.udp_server()
    client.sendto(b"", ("127.0.0.1", port))
    _, sport, payload = bed.expect_udp(7)
    assert payload == b""
    bed.send(udp(b"", sport, GATEWAY_IP, sport=7))
    assert bed.receive_from(client)[0] == b""


def test_a_removed_udp_forward_forgets_its_clients(bed: Bed) -> None:
    port = bed.forward(UDP, 7)
    client = bed.udp_server()
    client.sendto(b"hello", ("127.0.0.1", port))
    bed.expect_udp(7)
    bed.engine.remove_listener(1)
    assert bed.counter("udp.flows") == 0
    assert bed.engine.flows() == []
    bed.settle()


def test_a_forward_id_is_used_once(one_bed: Bed) -> None:
    one_bed.forward(TCP, 80)
    with socket.socket() as other, pytest.raises(ValueError, match="forward 1 exists already"):
        one_bed.engine.add_listener(1, other.fileno(), TCP, bytes(10) + b"\xff\xff" + v4(GUEST_IP), 81)
