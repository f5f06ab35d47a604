import logging
from dataclasses import replace

import dns.rdatatype
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto.messages import Network, Zone, ZoneRecord
from worker.services.dns_zones import NODATA, NXDOMAIN, Answer, LocalNames

A, AAAA, ANY, MX, PTR = (getattr(dns.rdatatype, name) for name in ("A", "AAAA", "ANY", "MX", "PTR"))
RECORDS = (
    ZoneRecord("10.0.0.7", regexp="^Ga.*x$"),
    ZoneRecord("192.168.127.1", "gateway"),
    ZoneRecord("10.0.0.9", "Deep.Below"),
    ZoneRecord("10.0.0.8", regexp="^web-[0-9]+$"),
    ZoneRecord("10.0.0.5", regexp="below"),
    ZoneRecord("fd00::1", "six"),
    ZoneRecord("10.0.0.6", "both"),
    ZoneRecord("fd00::6", "both"),
    ZoneRecord("10.0.0.66", "both"),
)


def known(network: Network) -> LocalNames:
    names = LocalNames()
    names.update(network)
    return names


@pytest.fixture
def names(network: Network) -> LocalNames:
    zones = (
        Zone("Containers.internal.", RECORDS),
        Zone("all.internal.", (ZoneRecord("fd00::2", "six"),), "9.9.9.9"),
        Zone("example.com.", (ZoneRecord("10.1.0.1", "db"), ZoneRecord("10.1.0.2"))),
        Zone("com.", (ZoneRecord("10.1.0.3", "www.example"),)),
        Zone("closed.example.", (ZoneRecord("10.1.0.4", "a.b"),), authoritative=True),
        Zone("open.internal.", (ZoneRecord("10.1.0.5", "a"),), authoritative=False),
        Zone("nothing.example."),
    )
    return known(replace(network, zones=zones, hosts={"web": "192.168.127.2", "gateway": "192.168.127.1"}))


def address(text: str) -> Answer:
    return Answer(True, ((AAAA if ":" in text else A, text),))


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("gateway.containers.internal", A, address("192.168.127.1")),
        ("garx.containers.internal", A, address("10.0.0.7")),
        ("web-12.containers.internal", A, address("10.0.0.8")),
        ("web-x.containers.internal", A, NXDOMAIN),
        ("both.containers.internal", A, address("10.0.0.6")),
        ("both.containers.internal", AAAA, address("fd00::6")),
        ("both.containers.internal", ANY, Answer(True, ((A, "10.0.0.6"), (AAAA, "fd00::6")))),
        ("gateway.containers.internal", AAAA, NODATA),
        ("gateway.containers.internal", MX, NODATA),
        ("six.containers.internal", A, NODATA),
        ("six.all.internal", A, NODATA),
        ("anything.at.all.internal", A, address("9.9.9.9")),
        ("all.internal", A, address("9.9.9.9")),
        ("anything.at.all.internal", AAAA, NODATA),
        ("xall.internal", A, None),
        ("internal", A, None),
        ("www.example.net", A, None),
    ],
)
def test_records_in_their_order_then_the_default_give_the_address(
    names: LocalNames, name: str, kind: dns.rdatatype.RdataType, answer: Answer | None
) -> None:
    assert names.lookup(name, kind) == answer


def test_the_first_of_the_records_that_match_counts_regexp_or_name(names: LocalNames, network: Network) -> None:
    assert names.lookup("deep.below.containers.internal", A) == address("10.0.0.9")
    records = (ZoneRecord("1.1.1.1", regexp="^a"), ZoneRecord("2.2.2.2", "a"), ZoneRecord("3.3.3.3", "b", "^c"))
    mixed = known(replace(network, zones=(Zone("x.", records),)))
    assert [mixed.lookup(f"{label}.x", A) for label in "abc"] == [
        address(ip) for ip in ("1.1.1.1", "3.3.3.3", "3.3.3.3")
    ]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("db.example.com", address("10.1.0.1")),
        ("example.com", address("10.1.0.2")),
        ("www.example.com", address("10.1.0.3")),
        ("other.example.com", None),
        ("com", None),
        ("other.closed.example", NXDOMAIN),
        ("b.closed.example", NODATA),
        ("closed.example", NODATA),
        ("other.open.internal", None),
        ("other.containers.internal", NXDOMAIN),
        ("containers.internal", NODATA),
        ("x.nothing.example", NXDOMAIN),
    ],
)
def test_a_zone_hides_unknown_names_only_where_it_is_authoritative(
    names: LocalNames, name: str, answer: Answer | None
) -> None:
    assert names.lookup(name, A) == answer


def test_a_zone_without_a_name_holds_every_name(network: Network) -> None:
    assert known(replace(network, zones=(Zone(""),))).lookup("www.example.com", A) == NXDOMAIN
    with_default = known(replace(network, zones=(Zone("", (), "9.9.9.9"),)))
    assert with_default.lookup("www.example.com", A) == with_default.lookup("", A) == address("9.9.9.9")
    static = known(replace(network, zones=(Zone("", (ZoneRecord("1.2.3.4", "db.example.com"),)),)))
    assert static.lookup("db.example.com", A) == address("1.2.3.4")
    assert static.lookup("www.example.com", A) is None


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("web.default.internal", A, address("192.168.127.2")),
        ("web.default.internal", AAAA, NODATA),
        ("nobody.default.internal", A, NXDOMAIN),
        ("default.internal", A, NODATA),
        ("2.127.168.192.in-addr.arpa", PTR, Answer(True, ((PTR, "web.default.internal."),))),
        ("2.127.168.192.in-addr.arpa", A, NODATA),
        ("3.127.168.192.in-addr.arpa", PTR, NXDOMAIN),
        ("2.0.0.10.in-addr.arpa", PTR, None),
        ("127.168.192.in-addr.arpa", PTR, None),
        ("x.2.127.168.192.in-addr.arpa", PTR, None),
    ],
)
def test_hosts_are_known_by_name_and_by_address(
    names: LocalNames, name: str, kind: dns.rdatatype.RdataType, answer: Answer | None
) -> None:
    assert names.lookup(name, kind) == answer


def test_a_zone_goes_before_what_a_guest_calls_itself(network: Network) -> None:
    zone = Zone("default.internal.", (ZoneRecord("10.0.0.1", "web"),))
    names = known(replace(network, zones=(zone,), hosts={"web": "192.168.127.2", "db": "192.168.127.3"}))
    assert names.lookup("web.default.internal", A) == address("10.0.0.1")
    assert names.lookup("db.default.internal", A) == address("192.168.127.3")
    assert names.lookup("x.default.internal", A) == NXDOMAIN


def test_an_address_is_no_name(names: LocalNames) -> None:
    assert names.lookup("192.0.2.1", A) == NXDOMAIN


def test_a_record_that_cannot_be_used_is_left_out(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    records = (ZoneRecord("1.2.3.4", regexp="("), ZoneRecord("no address", "a"), ZoneRecord("1.1.1.1", "b"))
    with caplog.at_level(logging.WARNING):
        names = known(replace(network, zones=(Zone("z.", records, "none either"),)))
    assert len(caplog.records) == 3
    assert names.lookup("b.z", A) == address("1.1.1.1")
    assert names.lookup("c.z", A) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300), st.sampled_from(["", ".containers.internal", ".in-addr.arpa", ".all.internal"]))
def test_no_name_raises(names: LocalNames, noise: str, suffix: str) -> None:
    for kind in (A, ANY, PTR, MX):
        names.lookup(noise + suffix, kind)
