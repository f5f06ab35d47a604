from collections.abc import Sequence
from dataclasses import replace

import pytest
from dpkt import dhcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto.messages import Lease, LeaseRelease, LeaseRequest, Network
from worker.addr import pack_ipv4
from worker.services.dhcp import (
    ANY_ADDRESS,
    BROADCAST_ADDRESS,
    MAX_CLIENTS,
    MAX_DECLINES,
    MAX_MESSAGE_SIZE,
    DhcpServer,
    Exchange,
    Kind,
    Refused,
    Reply,
    pull_request,
)
from worker.services.frames import BROADCAST_MAC

MAC = b"\x5a\x94\xef\xe4\x0c\xee"
GATEWAY, GUEST = pack_ipv4("192.168.127.1"), pack_ipv4("192.168.127.2")
LEASE = Lease("default", "192.168.127.2", "5a:94:ef:e4:0c:ee", 0.0)
NOW = 1000.0


def message(
    kind: int,
    *options: tuple[int, bytes],
    ciaddr: bytes = bytes(4),
    giaddr: bytes = bytes(4),
    flags: int = 0,
    chaddr: bytes = MAC,
) -> bytes:
    return bytes(
        dhcp.DHCP(
            xid=0x1234,
            flags=flags,
            ciaddr=int.from_bytes(ciaddr, "big"),
            giaddr=int.from_bytes(giaddr, "big"),
            chaddr=chaddr,
            opts=((53, bytes([kind])), *options),
        )
    )


@pytest.fixture
def server(network: Network) -> DhcpServer:
    return DhcpServer(network, "vm-1")


def exchange(server: DhcpServer, payload: bytes, now: float = NOW, src: bytes = ANY_ADDRESS) -> Exchange:
    result = server.receive(payload, MAC, src, 68, now)
    assert result is not None
    return result


def converse(
    server: DhcpServer,
    payload: bytes,
    lease: Lease | Refused | None = LEASE,
    now: float = NOW,
    src: bytes = ANY_ADDRESS,
) -> Reply:
    reply = server.answer(exchange(server, payload, now, src), lease, now)
    assert reply is not None
    return reply


def kind_of(reply: Reply) -> int:
    return options_of(reply)[53][0]


def options_of(reply: Reply) -> dict[int, bytes]:
    return dict(dhcp.DHCP(reply.payload).opts)


def test_discover_asks_for_an_address_and_offers_it(server: DhcpServer) -> None:
    asked = exchange(server, message(1, (12, b"web-1"), (50, GUEST)))
    assert asked.ask == LeaseRequest("vm-1", "5a:94:ef:e4:0c:ee", "192.168.127.2", "web-1", commit=False)
    reply = server.answer(asked, LEASE, NOW)
    assert reply is not None
    offer = dhcp.DHCP(reply.payload)
    assert (offer.op, offer.xid, offer.yiaddr.to_bytes(4, "big"), offer.chaddr) == (2, 0x1234, GUEST, MAC)
    assert len(reply.payload) >= 300
    assert dict(offer.opts) == {
        1: bytes([255, 255, 255, 0]),
        3: GATEWAY,
        6: GATEWAY,
        15: b"containers.internal",
        26: (1500).to_bytes(2, "big"),
        42: GATEWAY,
        51: (3600).to_bytes(4, "big"),
        53: bytes([Kind.OFFER]),
        54: GATEWAY,
        119: b"\x0acontainers\x08internal\0",
    }


def test_request_of_an_offered_address_is_acknowledged(server: DhcpServer) -> None:
    asked = exchange(server, message(3, (50, GUEST), (54, GATEWAY)))
    assert isinstance(asked.ask, LeaseRequest)
    assert asked.ask.commit
    reply = server.answer(asked, LEASE, NOW)
    assert reply is not None
    assert kind_of(reply) == Kind.ACK


@pytest.mark.parametrize(
    ("payload", "lease"),
    [
        (message(3, (50, pack_ipv4("192.168.127.9"))), LEASE),
        (message(3, (50, pack_ipv4("10.0.0.2"))), None),
        (message(3, ciaddr=pack_ipv4("192.168.127.9")), LEASE),
        (message(3), None),
        (message(3, (50, GUEST)), Refused()),
    ],
    ids=["not its address", "another network", "renewing another's", "no address at all", "none to be had"],
)
def test_a_wrong_request_is_refused_by_broadcast(server: DhcpServer, payload: bytes, lease: Lease | None) -> None:
    reply = converse(server, payload, lease)
    assert kind_of(reply) == Kind.NAK
    assert (reply.dst_mac, reply.dst) == (BROADCAST_MAC, BROADCAST_ADDRESS)
    assert set(options_of(reply)) == {53, 54}
    assert dhcp.DHCP(reply.payload).yiaddr == 0


def test_a_request_to_another_server_is_none_of_ours(server: DhcpServer) -> None:
    assert server.receive(message(3, (50, GUEST), (54, pack_ipv4("192.168.127.7"))), MAC, ANY_ADDRESS, 68, NOW) is None
    assert server.counters["dhcp.ignored"] == 1


def test_a_known_lease_is_renewed_while_the_supervisor_is_away(server: DhcpServer) -> None:
    renewal = message(3, ciaddr=GUEST)
    assert server.answer(exchange(server, renewal), None, NOW) is None
    assert kind_of(converse(server, message(3, (50, GUEST)))) == Kind.ACK
    reply = converse(server, renewal, None, NOW + 3599, GUEST)
    assert kind_of(reply) == Kind.ACK
    assert (reply.dst_mac, reply.dst) == (MAC, GUEST)
    assert server.answer(exchange(server, renewal), None, NOW + 3599 + 3601) is None


def test_inform_is_answered_without_an_address_or_a_lease(server: DhcpServer) -> None:
    asked = exchange(server, message(8, ciaddr=GUEST), src=GUEST)
    assert asked.ask is None
    reply = server.answer(asked, None, NOW)
    assert reply is not None
    assert 51 not in options_of(reply)
    assert dhcp.DHCP(reply.payload).yiaddr == 0
    assert reply.dst == GUEST


def test_release_gives_the_address_back_silently(server: DhcpServer) -> None:
    converse(server, message(3, (50, GUEST)))
    asked = exchange(server, message(7, (54, GATEWAY), ciaddr=GUEST))
    assert asked.ask == LeaseRelease("vm-1", "5a:94:ef:e4:0c:ee", "192.168.127.2")
    assert server.answer(asked, None, NOW) is None
    assert server.answer(exchange(server, message(3, ciaddr=GUEST)), None, NOW) is None


def test_declines_are_passed_on_up_to_a_limit(server: DhcpServer) -> None:
    decline = message(4, (50, GUEST), (54, GATEWAY))
    for _ in range(MAX_DECLINES):
        asked = exchange(server, decline)
        assert asked.ask == LeaseRelease("vm-1", "5a:94:ef:e4:0c:ee", "192.168.127.2", declined=True)
    assert server.receive(decline, MAC, ANY_ADDRESS, 68, NOW) is None


def test_a_guest_cannot_take_addresses_for_any_number_of_cards(server: DhcpServer) -> None:
    def discover(number: int, now: float = NOW) -> Exchange | None:
        return server.receive(message(1, chaddr=bytes([2, 0, 0, 0, 0, number])), MAC, ANY_ADDRESS, 68, now)

    assert all(discover(number) for number in range(MAX_CLIENTS))
    assert discover(MAX_CLIENTS) is None
    assert server.counters["dhcp.too_many_clients"] == 1
    assert discover(0) is not None
    assert discover(MAX_CLIENTS, NOW + 3601) is not None


RELAY = pack_ipv4("192.168.127.3")


@pytest.mark.parametrize(
    ("payload", "src", "dst_mac", "dst", "dport"),
    [
        (message(1), ANY_ADDRESS, BROADCAST_MAC, BROADCAST_ADDRESS, 68),
        (message(3, (50, GUEST), flags=0x8000), ANY_ADDRESS, BROADCAST_MAC, BROADCAST_ADDRESS, 68),
        (message(3, ciaddr=GUEST), GUEST, MAC, GUEST, 68),
        (message(1, giaddr=RELAY), RELAY, MAC, RELAY, 67),
    ],
    ids=["discover", "request", "renewal", "relayed"],
)
def test_replies_go_back_where_the_message_came_from_or_to_everybody(
    server: DhcpServer, payload: bytes, src: bytes, dst_mac: bytes, dst: bytes, dport: int
) -> None:
    reply = converse(server, payload, src=src)
    assert (reply.dst_mac, reply.dst, reply.dport) == (dst_mac, dst, dport)


def test_a_refusal_through_a_relay_is_to_be_broadcast_by_it(server: DhcpServer) -> None:
    relay = pack_ipv4("192.168.127.3")
    reply = converse(server, message(3, (50, pack_ipv4("10.0.0.1")), giaddr=relay))
    assert (reply.dst, reply.dport) == (relay, 67)
    assert dhcp.DHCP(reply.payload).flags == 0x8000


def test_client_id_and_relay_information_are_echoed_in_order(server: DhcpServer) -> None:
    reply = converse(server, message(1, (82, b"\1\2ab"), (61, b"\1client"), flags=0x8000))
    codes = [code for code, _ in dhcp.DHCP(reply.payload).opts]
    assert codes == [*sorted(codes[:-1]), 82]
    assert options_of(reply)[61] == b"\1client"
    assert options_of(reply)[82] == b"\1\2ab"
    assert dhcp.DHCP(reply.payload).flags == 0x8000


@pytest.mark.parametrize("domains", [(), (".",), ("x" * 64,), ("a." + "é" * 80,)])
def test_without_search_domains_there_is_no_option_for_them(
    server: DhcpServer, network: Network, domains: tuple[str, ...]
) -> None:
    server.update(replace(network, search_domains=domains))
    assert not options_of(converse(server, message(1))).keys() & {15, 119}


def test_search_domains_that_do_not_fit_are_left_out(server: DhcpServer, network: Network) -> None:
    domains = tuple(f"{'d' * 50}.number-{number}.example" for number in range(10))
    server.update(replace(network, search_domains=domains))
    option = options_of(converse(server, message(1)))[119]
    assert len(option) <= 255
    assert option.count(b"\0") == 3


@pytest.mark.parametrize("name", [b"web 1", b"\xff\xfe", b"a" * 64, b"<b>x</b>"])
def test_a_hostname_that_is_none_is_not_passed_on(name: bytes) -> None:
    request = pull_request(message(1, (12, name)), MAC, ANY_ADDRESS, 68)
    assert request is not None
    assert request.hostname == ""


def test_bad_messages_are_counted(server: DhcpServer) -> None:
    good = message(1)
    bad: Sequence[bytes] = (
        b"",
        good[:239],
        good[:-2],
        b"\2" + good[1:],
        good[:2] + b"\x10" + good[3:],
        message(2),
        message(99),
        good.ljust(MAX_MESSAGE_SIZE + 1, b"\0"),
    )
    for payload in bad:
        assert server.receive(payload, MAC, ANY_ADDRESS, 68, NOW) is None
    assert server.counters["dhcp.malformed"] == len(bad)
    assert server.receive(good.ljust(MAX_MESSAGE_SIZE, b"\0"), MAC, ANY_ADDRESS, 68, NOW) is not None


@given(
    st.binary(max_size=600),
    st.sampled_from([1, 3, 4, 7, 8]),
    st.lists(st.tuples(st.integers(1, 254), st.binary(max_size=40))),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_raise(network: Network, noise: bytes, kind: int, options: list[tuple[int, bytes]]) -> None:
    server = DhcpServer(network, "vm-1")
    for payload in (noise, message(kind)[:240] + noise, message(kind, *options)):
        asked = server.receive(payload, MAC, ANY_ADDRESS, 68, NOW)
        if asked is not None:
            server.answer(asked, LEASE, NOW)
            server.answer(asked, None, NOW)
