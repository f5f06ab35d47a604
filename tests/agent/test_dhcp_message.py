"""What the client reads of a server's message, garbled ones included, and what a server reads of the client's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest
from dpkt import dhcp
from hypothesis import given
from hypothesis import strategies as st

from agent.dhcp_message import (
    FOREVER,
    MIN_MESSAGE_SIZE,
    Kind,
    Lease,
    Message,
    pull_domains,
    pull_lease,
    pull_message,
    push_message,
)

MAC = bytes.fromhex("5a94efe40cee")
ADDRESS = IPv4Address("192.168.127.2")
GATEWAY = IPv4Address("192.168.127.1")
LEAST = {51: (3600).to_bytes(4, "big"), 53: bytes([Kind.ACK]), 54: GATEWAY.packed}
"""Options without which there is no lease."""


def reply(options: dict[int, bytes], **fields: object) -> bytes:
    """A server's message."""
    values = {"op": 2, "xid": 7, "chaddr": MAC, "yiaddr": int(ADDRESS), **fields}
    return bytes(dhcp.DHCP(opts=list(options.items()), **values))


def lease_of(options: dict[int, bytes], **fields: object) -> Lease | None:
    message = pull_message(reply({**LEAST, **options}, **fields))
    assert message is not None
    return pull_lease(message)


def test_a_request_says_what_the_server_needs() -> None:
    payload = push_message(Kind.REQUEST, 7, MAC, 3, requested=ADDRESS, server=GATEWAY, hostname="guest")
    assert len(payload) >= MIN_MESSAGE_SIZE
    message = dhcp.DHCP(payload)
    assert (message.op, message.xid, message.secs, message.chaddr) == (1, 7, 3, MAC)
    options = dict(message.opts)
    assert (options[53], options[50], options[54]) == (bytes([3]), ADDRESS.packed, GATEWAY.packed)
    assert options[12] == b"guest"
    assert {1, 3, 6, 15, 26, 51, 119} <= set(options[55])


def test_what_is_not_given_is_not_said() -> None:
    options = dict(dhcp.DHCP(push_message(Kind.DISCOVER, 7, MAC, 0)).opts)
    assert set(options) == {53, 55, 57}


def test_a_lease_has_all_that_the_server_said() -> None:
    assert lease_of(
        {
            1: bytes([255, 255, 255, 0]),
            3: GATEWAY.packed,
            6: GATEWAY.packed + bytes([1, 1, 1, 1]),
            26: (4000).to_bytes(2, "big"),
            58: (100).to_bytes(4, "big"),
            59: (200).to_bytes(4, "big"),
            119: b"\x03lab\x04test\x00",
        }
    ) == Lease(
        address=IPv4Interface("192.168.127.2/24"),
        server=GATEWAY,
        routers=(GATEWAY,),
        servers=(GATEWAY, IPv4Address("1.1.1.1")),
        search=("lab.test",),
        mtu=4000,
        lifetime=3600,
        renewal=100,
        rebinding=200,
    )


def test_a_lease_without_times_is_renewed_at_half_and_seven_eighths() -> None:
    lease = lease_of({})
    assert lease is not None
    assert (lease.renewal, lease.rebinding) == (1800, 3150)


def test_times_out_of_order_are_passed_over() -> None:
    lease = lease_of({58: (3000).to_bytes(4, "big"), 59: (200).to_bytes(4, "big")})
    assert lease is not None
    assert (lease.renewal, lease.rebinding) == (1800, 3150)


@pytest.mark.parametrize(("seconds", "expected"), [(0, 10), (9, 10), (11, 11), (FOREVER, FOREVER)])
def test_a_lease_lasts_ten_seconds_at_least(seconds: int, expected: int) -> None:
    lease = lease_of({51: seconds.to_bytes(4, "big")})
    assert lease is not None
    assert lease.lifetime == expected


@pytest.mark.parametrize(
    ("mask", "length"),
    [("ffffff00", 24), ("ffffffff", 32), ("80000000", 1), ("00000000", 32), ("ff00ff00", 32), ("ffff", 32), ("", 32)],
)
def test_a_mask_that_makes_no_sense_leaves_the_address_alone(mask: str, length: int) -> None:
    lease = lease_of({1: bytes.fromhex(mask)})
    assert lease is not None
    assert lease.address.network.prefixlen == length


@pytest.mark.parametrize("mtu", [b"\x00\x43", b"\x05", b""])
def test_an_mtu_that_is_none_is_passed_over(mtu: bytes) -> None:
    lease = lease_of({26: mtu})
    assert lease is not None
    assert lease.mtu is None


def test_the_domain_name_is_searched_where_there_is_no_search_list() -> None:
    lease = lease_of({15: b"lab.test\0"})
    assert lease is not None
    assert lease.search == ("lab.test",)


@pytest.mark.parametrize("missing", [51, 54])
def test_a_message_without_server_or_time_grants_nothing(missing: int) -> None:
    message = pull_message(reply({code: value for code, value in LEAST.items() if code != missing}))
    assert message is not None
    assert pull_lease(message) is None


@pytest.mark.parametrize("address", [0, int(IPv4Address("224.0.0.1"))])
def test_an_address_that_is_none_grants_nothing(address: int) -> None:
    assert lease_of({}, yiaddr=address) is None


def test_options_go_on_in_file_and_sname_where_the_server_says_so() -> None:
    spread = {52: b"\x03"}
    file = b"\x06\x04\x01\x01\x01\x01\xff"
    sname = b"\x03\x04" + GATEWAY.packed + b"\xff"
    lease = lease_of(spread, file=file.ljust(128, b"\0"), sname=sname.ljust(64, b"\0"))
    assert lease is not None
    assert (lease.servers, lease.routers) == ((IPv4Address("1.1.1.1"),), (GATEWAY,))


def test_an_option_in_two_pieces_is_one() -> None:
    payload = reply(LEAST).rstrip(b"\0").removesuffix(b"\xff")
    message = pull_message(payload + b"\x77\x05\x03lab\x04" + b"\x77\x05test\x00\xff")
    assert message is not None
    assert pull_domains(message.options[119]) == ("lab.test",)


@pytest.mark.parametrize(
    ("data", "domains"),
    [
        (b"\x03lab\x04test\x00", ("lab.test",)),
        (
            b"\x04mail\x03lab\x04test\x00\x03dev\xc0\x05\x02eu\xc0\x0f",
            ("mail.lab.test", "dev.lab.test", "eu.dev.lab.test"),
        ),
        (b"\x03lab\x00\xc0\x00", ("lab", "lab")),
        (b"\xc0\x00", ()),
        (b"\x03lab\xc0\x00", ()),
        (b"\xc0\x05\x03lab\x00", ()),
        (b"\x03lab\x00\xc0\x06\xc0\x05", ()),
        (b"\x03lab", ()),
        (b"\x09lab\x00", ()),
        (b"\x80lab\x00", ()),
        (b"\x03lab\xc0", ()),
        (b"", ()),
        (b"\x00", ()),
        (b"\x0aa\nnameserv\x00\x02ok\x00", ("ok",)),
        (b"\x03a b\x00", ()),
        (b"\x02-a\x00", ()),
        (b"\x3f" + b"a" * 63 + b"\x00", ("a" * 63,)),
        ((b"\x3f" + b"a" * 63) * 4 + b"\x00", ()),
        (b"\x01a\x00" * 40, ("a",) * 32),
    ],
)
def test_search_domains_are_read_as_dns_compresses_them(data: bytes, domains: tuple[str, ...]) -> None:
    assert pull_domains(data) == domains


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        reply(LEAST)[:235],
        reply(LEAST, op=1),
        reply(LEAST, hln=8),
        reply(LEAST, magic=1),
        reply({53: b"\x01"}),
        reply({53: b""}),
        reply({}),
    ],
)
def test_what_is_no_servers_message_is_none(payload: bytes) -> None:
    assert pull_message(payload) is None


@given(st.binary(max_size=300), st.integers(0, 2))
def test_no_options_however_garbled_raise(data: bytes, overload: int) -> None:
    fixed = reply({})[:240]
    head = b"\x35\x01\x05\x34\x01" + bytes([overload])
    message = pull_message(fixed[:44] + data[:64].ljust(64, b"\0") + fixed[108:] + head + data)
    assert isinstance(message, (Message, type(None)))
    if message is not None:
        pull_lease(message)
        pull_domains(data)
