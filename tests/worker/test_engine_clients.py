"""By which address the guest sees who connects to a forwarded port: frames on one side, real addresses on the other.

The host's sockets are in a namespace of their own, where the host has an address besides its loopback, an address in
the guest's subnet, and IPv6.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from dpkt.tcp import TH_SYN

from tests.guests.host import ADDRESS, make_host
from tests.guests.namespace import Namespace
from tests.worker.framebed import GATEWAY_IP, GUEST_IP, TCP, UDP, Bed, attempt, udp, wide
from tests.worker.guest_tcp import GuestTcp

pytestmark = pytest.mark.guest

NEIGHBOUR = "192.168.127.77"
IPV6 = "fd77::1"
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}

AS_SEEN = [
    (ADDRESS, ADDRESS, True),
    (ADDRESS, GATEWAY_IP, False),
    ("127.0.0.1", GATEWAY_IP, True),
    ("127.8.8.8", GATEWAY_IP, True),
    (NEIGHBOUR, GATEWAY_IP, True),
    (IPV6, GATEWAY_IP, True),
    ("::1", GATEWAY_IP, True),
]
"""A client's address, as the guest sees it, with or without keeping the source."""


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        host.ip("address", "add", f"{NEIGHBOUR}/32", "dev", "lo")
        host.ip("address", "add", f"{IPV6}/128", "dev", "lo")
        yield host


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(bed: Bed, host: Namespace, proto: int, address: str, keep_source: bool = True, number: int = 1) -> int:
    """A forwarded port on an address of the host; ``::`` takes IPv4 as well."""
    with host.entered():
        sock = socket.socket(family(address), KINDS[proto])
    if address == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((address, 0))
    if proto == TCP:
        sock.listen()
    port: int = sock.getsockname()[1]
    bed.engine.add_listener(number, sock.detach(), proto, wide(GUEST_IP), 80, keep_source=keep_source)
    return port


def client(bed: Bed, host: Namespace, proto: int, address: str, port: int = 0) -> socket.socket:
    """A socket bound to an address of the host."""
    with host.entered():
        sock = bed.keep(socket.socket(family(address), KINDS[proto]))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    return sock


def called(bed: Bed) -> GuestTcp:
    """The guest's end of the connection whose SYN comes next."""
    syn = bed.expect(lambda ip: hasattr(ip, "tcp") and ip.tcp.flags == TH_SYN)
    bed.inbox.append(type("Frame", (), {"data": syn}))
    return GuestTcp(bed, socket.inet_ntoa(syn.src), syn.tcp.sport, syn.tcp.dport)


@pytest.mark.parametrize(("address", "seen", "keep_source"), AS_SEEN)
def test_the_guest_sees_a_tcp_clients_own_address_where_it_can_answer_it(
    one_bed: Bed, host: Namespace, address: str, seen: str, keep_source: bool
) -> None:
    port = listen(one_bed, host, TCP, "::", keep_source)
    sock = client(one_bed, host, TCP, address)
    sock.connect_ex((address, port))
    guest = called(one_bed).answer()
    assert (guest.dst, guest.dport) == (seen, sock.getsockname()[1])
    sock.send(b"question")
    assert guest.read(8) == b"question"
    guest.write(b"answer")
    assert one_bed.receive(sock, 6) == b"answer"


@pytest.mark.parametrize("listening", ["", "::"])
@pytest.mark.parametrize(("address", "seen", "keep_source"), AS_SEEN)
def test_the_guest_sees_a_udp_clients_own_address_where_it_can_answer_it(
    one_bed: Bed, host: Namespace, address: str, seen: str, keep_source: bool, listening: str
) -> None:
    port = listen(one_bed, host, UDP, listening or address, keep_source)
    sock = client(one_bed, host, UDP, address)
    own_port = sock.getsockname()[1]
    for question in (b"1?", b"2?"):
        sock.sendto(question, (address, port))
        assert one_bed.expect_udp(80) == (seen, own_port, question)
    one_bed.send(udp(b"answer", own_port, seen, sport=80))
    assert one_bed.run_until(lambda: attempt(lambda: sock.recv(100))) == b"answer"
    assert one_bed.counter("udp.flows") == 1


@pytest.mark.parametrize("listening", ["0.0.0.0", "::"])
@pytest.mark.parametrize(("address", "called_at"), [(ADDRESS, NEIGHBOUR), (NEIGHBOUR, "127.0.0.1"), (IPV6, "::1")])
def test_a_udp_answer_comes_from_the_address_that_was_asked(
    one_bed: Bed, host: Namespace, address: str, called_at: str, listening: str
) -> None:
    """A client that has connected its socket hears no other; the host has many addresses, the port is open on all."""
    if family(address) != family(listening) and listening == "0.0.0.0":
        return
    port = listen(one_bed, host, UDP, listening)
    sock = client(one_bed, host, UDP, address)
    sock.connect((called_at, port))
    sock.send(b"question")
    seen, own_port, _ = one_bed.expect_udp(80)
    one_bed.send(udp(b"answer", own_port, seen, sport=80))
    assert one_bed.run_until(lambda: attempt(lambda: sock.recv(100))) == b"answer"


@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
def test_clients_that_would_look_alike_are_told_apart_by_port(one_bed: Bed, host: Namespace, proto: int) -> None:
    """The same address and port by two forwards to one port of the guest, and a neighbour's behind the gateway."""
    ports = [listen(one_bed, host, proto, "127.0.0.1", number=number) for number in (1, 2)]
    ports.append(listen(one_bed, host, proto, NEIGHBOUR, number=3))
    first = client(one_bed, host, proto, "127.0.0.1")
    own_port = first.getsockname()[1]
    second = first if proto == UDP else client(one_bed, host, proto, "127.0.0.1", own_port)
    third = client(one_bed, host, proto, NEIGHBOUR, own_port)
    seen = []
    for sock, port, address in zip((first, second, third), ports, ("127.0.0.1", "127.0.0.1", NEIGHBOUR), strict=True):
        if proto == UDP:
            sock.sendto(b"", (address, port))
            seen.append(one_bed.expect_udp(80)[:2])
        else:
            sock.connect_ex((address, port))
            guest = called(one_bed).answer()
            seen.append((guest.dst, guest.dport))
    assert seen[0] == (GATEWAY_IP, own_port)
    assert {address for address, _ in seen} == {GATEWAY_IP}
    assert len(set(seen)) == 3


def test_clients_of_a_unix_socket_appear_as_the_gateway(bed: Bed, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    bed.engine.add_listener(1, listener.detach(), TCP, wide(GUEST_IP), 80)
    ports = set()
    for _ in range(3):
        sock = bed.keep(socket.socket(socket.AF_UNIX))
        sock.connect(str(tmp_path / "s"))
        guest = called(bed).answer()
        assert guest.dst == GATEWAY_IP
        ports.add(guest.dport)
        sock.send(b"question")
        assert guest.read(8) == b"question"
        sock.shutdown(socket.SHUT_WR)
        guest.hear_fin()
        guest.write(b"answer")
        assert bed.receive(sock, 6) == b"answer"
    assert len(ports) == 3
    assert min(ports) >= 49152


def test_a_socket_that_is_already_connected_is_joined_to_the_guests_port(bed: Bed) -> None:
    ours, theirs = socket.socketpair()
    bed.keep(ours).send(b"early")
    bed.engine.call_guest(theirs.detach(), wide(GUEST_IP), 22)
    guest = called(bed).answer()
    assert (guest.dst, guest.sport) == (GATEWAY_IP, 22)
    assert guest.read(5) == b"early"
    guest.write(b"SSH-2.0")
    assert bed.receive(ours, 7) == b"SSH-2.0"
    ours.close()
    guest.hear_fin()
    assert bed.counter("tcp.opened_by_host") == 1


def test_what_was_read_of_a_socket_before_goes_first(bed: Bed) -> None:
    ours, theirs = socket.socketpair()
    bed.keep(ours).send(b"then this")
    first = bytes(range(256)) * 40
    bed.engine.call_guest(theirs.detach(), wide(GUEST_IP), 22, first)
    guest = called(bed).answer()
    assert guest.read(len(first) + 9) == first + b"then this"
    guest.write(b"answer")
    assert bed.receive(ours, 6) == b"answer"


def test_a_call_that_the_guest_refuses_ends_the_socket(bed: Bed) -> None:
    ours, theirs = socket.socketpair()
    bed.keep(ours)
    bed.engine.call_guest(theirs.detach(), wide(GUEST_IP), 22)
    guest = called(bed)
    guest.expected = guest.hear(TH_SYN).seq + 1
    bed.send(guest.segment(0x14, seq=0))
    bed.run_until(lambda: bed.at_end(ours))
    assert bed.counter("tcp.flows") == 0


def test_a_call_over_the_limit_of_flows_ends_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (96, 96))  # 16 mappings, and as many connections
    bed = Bed()
    try:
        pairs = [socket.socketpair() for _ in range(17)]
        for ours, theirs in pairs:
            bed.keep(ours)
            bed.engine.call_guest(theirs.detach(), wide(GUEST_IP), 22)
        assert not any(bed.at_end(ours) for ours, _ in pairs[:16])
        assert bed.at_end(pairs[16][0])
        assert bed.counter("tcp.over_limit") == 1
    finally:
        bed.close()
