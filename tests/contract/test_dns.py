"""gvproxy's DNS, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c), and what Moorage does better."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import pytest

from tests.guests.guest import build_probe
from tests.guests.host import make_host
from tests.guests.namespace import NamespaceGuest
from tests.guests.servers import Names, dns_server
from tests.guests.service import Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

GATEWAY, HOST = "192.168.127.1", "192.168.127.254"
ADD, ALL = "/services/dns/add", "/services/dns/all"
BIG = " ".join('"' + str(number) * 200 + '"' for number in range(1, 9))
ZONE = f"""
www.example.test. 300 IN A 192.0.2.10
www.example.test. 300 IN AAAA 2001:db8::10
alias.example.test. 300 IN CNAME www.example.test.
six.example.test. 300 IN AAAA 2001:db8::6
example.test. 300 IN MX 20 b.example.test.
example.test. 300 IN MX 10 a.example.test.
example.test. 300 IN NS ns.example.test.
example.test. 300 IN TXT "in two" "strings"
_http._tcp.example.test. 300 IN SRV 1 2 80 www.example.test.
big.example.test. 300 IN TXT {BIG}
known.corp.test. 300 IN A 192.0.2.20
short.example.test. 1 IN A 192.0.2.40
static.public.example. 300 IN A 192.0.2.30
other.public.example. 300 IN A 192.0.2.31
"""
_zones = (f"zone{number}.internal." for number in itertools.count())
_macs = (f"5a:94:ef:e4:21:{number:02x}" for number in itertools.count())


@pytest.fixture(scope="module")
def upstream(service: Service) -> Iterator[Names]:
    """The DNS server of the host's resolv.conf."""
    with dns_server(service.host, ZONE) as names:
        names.failing.add("broken.example.test.")
        yield names


@contextlib.contextmanager
def attached(service: Service, directory: Path, hostname: str = "") -> Iterator[NamespaceGuest]:
    guest = NamespaceGuest(directory, service.unix_url, next(_macs), build_probe(directory), service.host)
    with contextlib.closing(guest):
        guest.configure(hostname)
        yield guest


@pytest.fixture(scope="module")
def guest(service: Service, upstream: Names, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespaceGuest]:
    with attached(service, tmp_path_factory.mktemp("guest"), "Tester.example") as guest:
        yield guest


@pytest.fixture
def zone() -> str:
    """The name of a zone that no other test uses."""
    return next(_zones)


def ask(guest: NamespaceGuest, query: dns.message.Message, over_tcp: bool = False) -> dns.message.Message:
    with guest.namespace.entered():
        send = dns.query.tcp if over_tcp else dns.query.udp
        return send(query, GATEWAY, timeout=10, ignore_trailing=False)


def lookup(guest: NamespaceGuest, name: str, kind: str = "A") -> tuple[str, list[str]]:
    """Response code and data."""
    answer = ask(guest, dns.message.make_query(name, kind))
    return dns.rcode.to_text(answer.rcode()), [item.to_text() for rrset in answer.answer for item in rrset]


def exchange(guest: NamespaceGuest, wire: bytes, timeout: float = 5.0) -> bytes:
    """The answer to any bytes. Raises TimeoutError."""
    with guest.namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.sendto(wire, (GATEWAY, 53))
        return sock.recv(65535)


def add(service: Service, name: str, *records: dict[str, str], **more: object) -> None:
    body = {"Name": name, "Records": list(records)} | more
    assert service.request("POST", ADD, body) == (200, "")


def record(name: str, ip: str) -> dict[str, str]:
    return {"Name": name, "IP": ip}


def by_regexp(regexp: str, ip: str) -> dict[str, str]:
    return {"Regexp": regexp, "IP": ip}


# --- section 7: what is accepted


@pytest.mark.parametrize("wire", [b"", b"x" * 11, struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + b"\0\0\1\0\1"])
def test_responses_and_garbage_are_ignored(guest: NamespaceGuest, wire: bytes) -> None:
    """Accept filter: responses ignored; garbage ignored"""
    with pytest.raises(TimeoutError):
        exchange(guest, wire, 0.2)


@pytest.mark.parametrize("opcode", [dns.opcode.IQUERY, dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE, 15])
def test_other_opcodes_are_not_implemented(guest: NamespaceGuest, opcode: int) -> None:
    """opcode other than QUERY/NOTIFY ⇒ NOTIMP; better: NOTIFY as well, which is for servers with zones (RFC 1996)"""
    answer = exchange(guest, struct.pack("!6H", 0x1234, opcode << 11, 0, 0, 0, 0))
    assert answer == struct.pack("!6H", 0x1234, 0x8080 | opcode << 11 | dns.rcode.NOTIMP, 0, 0, 0, 0)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (2, 0, 0, 0), (1, 2, 0, 0), (1, 0, 2, 0), (1, 0, 0, 3)])
def test_wrong_counts_are_a_format_error(guest: NamespaceGuest, counts: tuple[int, int, int, int]) -> None:
    """question count ≠1, >1 answer, >1 authority, >2 additional ⇒ FORMERR (12 bytes)"""
    answer = exchange(guest, struct.pack("!6H", 0x1234, 0x0100, *counts))
    assert answer == struct.pack("!6H", 0x1234, 0x8180 | dns.rcode.FORMERR, 0, 0, 0, 0)


# --- section 7: what is replied


@pytest.mark.parametrize("flags", [0, dns.flags.RD, dns.flags.CD, dns.flags.RD | dns.flags.CD])
def test_a_reply_repeats_the_query(guest: NamespaceGuest, flags: int) -> None:
    """Reply: same id/opcode/RD/CD, RA=1, AA=0, TTL 0, class IN, no OPT (ours: none where none was asked with)"""
    query = dns.message.make_query("Host.Containers.internal.", "A", flags=flags)
    answer = ask(guest, query)
    assert (answer.id, answer.opcode(), answer.question) == (query.id, dns.opcode.QUERY, query.question)
    assert answer.flags == dns.flags.QR | dns.flags.RA | flags
    assert answer.answer[0].to_text() == f"Host.Containers.internal. 0 IN A {HOST}"
    assert (answer.edns, len(answer.authority), len(answer.additional)) == (-1, 0, 0)


def test_a_class_that_is_any_is_answered_as_internet(guest: NamespaceGuest) -> None:
    """class IN whatever was asked"""
    query = dns.message.make_query("host.containers.internal.", "A", rdclass="ANY")
    assert ask(guest, query).answer[0].to_text() == f"host.containers.internal. 0 IN A {HOST}"


def test_a_name_is_asked_as_it_is_and_search_domains_are_the_guests(guest: NamespaceGuest, upstream: Names) -> None:
    """Upstream: query with trailing dot, search list not applied"""
    before = len(upstream.questions)
    assert lookup(guest, "host.") == ("NXDOMAIN", [])
    assert upstream.questions[before:] == [("host.", "A")]


def test_an_answer_is_cut_to_512_bytes_or_what_edns_says(guest: NamespaceGuest) -> None:
    """UDP limit 512 or OPT size (min 512), TC when cut."""
    sizes: list[tuple[int | None, bool]] = [(None, True), (100, True), (1232, True), (4096, False)]
    for payload, is_cut in sizes:
        query = dns.message.make_query("big.example.test.", "TXT", use_edns=payload is not None, payload=payload or 0)
        answer = ask(guest, query)
        assert bool(answer.flags & dns.flags.TC) == is_cut
        assert len(answer.answer) == (not is_cut)


def test_an_answer_over_tcp_is_whole(guest: NamespaceGuest) -> None:
    """TCP replies are not cut to the EDNS size"""
    answer = ask(guest, dns.message.make_query("big.example.test.", "TXT", use_edns=0, payload=512), over_tcp=True)
    assert len(answer.answer[0].to_text()) > 1600


# --- section 7: zones


def test_the_first_matching_zone_in_list_order_decides(guest: NamespaceGuest, service: Service, zone: str) -> None:
    """Zones in list order: match = name ends with "."+zone name, first matching zone decides."""
    add(service, f"inner.{zone}", record("a", "10.0.0.1"))
    add(service, zone, record("a.inner", "10.0.0.2"), record("b.inner", "10.0.0.3"))
    assert lookup(guest, f"a.inner.{zone}") == ("NOERROR", ["10.0.0.1"])
    assert lookup(guest, f"b.inner.{zone}") == ("NXDOMAIN", [])
    assert lookup(guest, f"x{zone}") == ("NXDOMAIN", [])


def test_zones_match_in_any_case_and_at_their_apex(guest: NamespaceGuest, service: Service, zone: str) -> None:
    """zones match in any case and at their apex (gvproxy: case-sensitive, apex not matched)"""
    add(service, zone.upper(), record("MiXed", "10.0.0.1"), by_regexp("^Re-[0-9]", "10.0.0.2"), record("", "10.0.0.3"))
    assert lookup(guest, f"mIXEd.{zone}") == ("NOERROR", ["10.0.0.1"])
    assert lookup(guest, f"rE-7.{zone}") == ("NOERROR", ["10.0.0.2"])
    assert lookup(guest, zone) == ("NOERROR", ["10.0.0.3"])


def test_a_zones_name_needs_no_dot_at_its_end(guest: NamespaceGuest, service: Service, zone: str) -> None:
    """zone name must end with a dot; better: it need not"""
    add(service, zone.removesuffix("."), record("a", "10.0.0.1"))
    assert lookup(guest, f"a.{zone}") == ("NOERROR", ["10.0.0.1"])


def test_the_first_record_by_name_or_regexp_gives_the_address(
    guest: NamespaceGuest, service: Service, zone: str
) -> None:
    """A: first record with equal name or regexp hit on the prefix (labels before the zone, may contain dots); else
    DefaultIP; else NXDOMAIN"""
    records = (by_regexp("^web", "10.0.0.1"), record("web-2", "10.0.0.2"), by_regexp(r"^[a-z]+\.deep$", "10.0.0.3"))
    add(service, zone, *records)
    assert lookup(guest, f"web-2.{zone}") == ("NOERROR", ["10.0.0.1"])
    assert lookup(guest, f"any.deep.{zone}") == ("NOERROR", ["10.0.0.3"])
    assert lookup(guest, f"other.{zone}") == ("NXDOMAIN", [])
    add(service, zone, DefaultIP="9.9.9.9")
    assert lookup(guest, f"other.{zone}") == ("NOERROR", ["9.9.9.9"])
    assert lookup(guest, f"web-2.{zone}") == ("NOERROR", ["10.0.0.1"])


def test_an_ipv6_record_answers_aaaa(guest: NamespaceGuest, service: Service, zone: str) -> None:
    """an IPv6 record IP answers A 0.0.0.0 [w]; better: AAAA, and no A"""
    add(service, zone, record("six", "fd00::1"))
    assert lookup(guest, f"six.{zone}", "AAAA") == ("NOERROR", ["fd00::1"])
    assert lookup(guest, f"six.{zone}", "A") == ("NOERROR", [])


@pytest.mark.parametrize("kind", ["AAAA", "MX", "TXT", "HTTPS"])
def test_other_types_of_a_zones_name_are_an_empty_answer(
    guest: NamespaceGuest, service: Service, upstream: Names, kind: str
) -> None:
    """Other types skip all zones and go upstream; better: a v4-only name has no AAAA, which is NOERROR, not NXDOMAIN"""
    before = len(upstream.questions)
    assert lookup(guest, "gateway.containers.internal.", kind) == ("NOERROR", [])
    assert len(upstream.questions) == before


def test_a_static_name_does_not_hide_its_siblings_in_the_real_dns(guest: NamespaceGuest, service: Service) -> None:
    """issue: a static name does not shadow its siblings in the real DNS unless the zone says it is authoritative"""
    add(service, "public.example.", record("static", "10.0.0.1"))
    assert lookup(guest, "static.public.example.") == ("NOERROR", ["10.0.0.1"])
    assert lookup(guest, "other.public.example.") == ("NOERROR", ["192.0.2.31"])
    add(service, "public.example.", Authoritative=True)
    assert lookup(guest, "other.public.example.") == ("NXDOMAIN", [])
    add(service, "public.example.", Authoritative=False)


def test_an_added_zone_reaches_every_vm_at_once_and_survives_a_restart(tmp_path: Path) -> None:
    """issue: zones added while running reach every worker at once and survive a restart"""
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(make_host())
        service = stack.enter_context(Service(host))
        guests = [stack.enter_context(attached(service, tmp_path)) for _ in range(2)]
        add(service, "new.internal.", record("a", "10.0.0.1"), by_regexp("^r", "10.0.0.2"))
        assert [lookup(guest, "a.new.internal.") for guest in guests] == [("NOERROR", ["10.0.0.1"])] * 2
        listed = service.request("GET", ALL)
        service.stop()
        service.start()
        assert service.request("GET", ALL) == listed
        wait_for(lambda: len(service.get("/v1/vms")["vms"]) == 2, 20, "the guests to come back")
        assert [lookup(guest, "r1.new.internal.") for guest in guests] == [("NOERROR", ["10.0.0.2"])] * 2
        assert service.request("DELETE", "/v1/zones?name=new.internal.")[0] == 204
        assert [lookup(guest, "r1.new.internal.")[1] for guest in guests] == [[]] * 2


def test_an_empty_zone_holds_every_name(tmp_path: Path) -> None:
    """`{}` adds a zone matching every name (catch-all NXDOMAIN, or DefaultIP) [w]"""
    with make_host() as host, Service(host) as service, dns_server(host, ZONE), attached(service, tmp_path) as guest:
        assert lookup(guest, "www.example.test.") == ("NOERROR", ["192.0.2.10"])
        assert service.request("POST", ADD, {}) == (200, "")
        assert lookup(guest, "www.example.test.") == ("NXDOMAIN", [])
        assert lookup(guest, "host.containers.internal.") == ("NOERROR", [HOST])
        assert service.request("POST", ADD, {"DefaultIP": "9.9.9.9"}) == (200, "")
        assert lookup(guest, "www.example.test.") == ("NOERROR", ["9.9.9.9"])
        assert service.get(ALL)[-1] == {"Name": "", "Records": None, "DefaultIP": "9.9.9.9"}


# --- section 7: upstream


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("www.example.test.", "A", {"192.0.2.10"}),
        ("www.example.test.", "AAAA", {"2001:db8::10"}),
        ("alias.example.test.", "A", {"www.example.test.", "192.0.2.10"}),
        ("alias.example.test.", "CNAME", {"www.example.test."}),
        ("www.example.test.", "CNAME", set()),
        ("six.example.test.", "A", set()),
        ("example.test.", "MX", {"10 a.example.test.", "20 b.example.test."}),
        ("example.test.", "NS", {"ns.example.test."}),
        ("example.test.", "TXT", {'"in two" "strings"'}),
        ("_http._tcp.example.test.", "SRV", {"1 2 80 www.example.test."}),
        ("example.test.", "TYPE65280", set()),
    ],
)
def test_the_upstreams_answer_passes_whatever_its_type(
    guest: NamespaceGuest, name: str, kind: str, expected: set[str]
) -> None:
    """A ⇒ IPv4 part of the lookup; AAAA-only ⇒ empty NOERROR; CNAME, MX, TXT, NS, SRV; better: all types pass, and
    NODATA is an empty answer"""
    rcode, found = lookup(guest, name, kind)
    assert (rcode, set(found)) == ("NOERROR", expected)


def test_real_ttls_count_down(guest: NamespaceGuest, upstream: Names) -> None:
    """better: real TTLs"""
    name = "known.corp.test."
    first = ask(guest, dns.message.make_query(name, "A")).answer[0].ttl
    assert 295 <= first <= 300
    wait_for(lambda: ask(guest, dns.message.make_query(name, "A")).answer[0].ttl < first, 5, "the TTL to go down")
    assert upstream.questions.count((name, "A")) == 1


def test_a_failure_is_a_failure(guest: NamespaceGuest) -> None:
    """better: SERVFAIL is SERVFAIL"""
    assert lookup(guest, "broken.example.test.") == ("SERVFAIL", [])


def test_a_name_that_does_not_exist_does_not(guest: NamespaceGuest) -> None:
    """NXDOMAIN is NXDOMAIN"""
    assert lookup(guest, "nowhere.example.test.") == ("NXDOMAIN", [])


def test_an_unreachable_upstream_is_a_failure_soon(guest: NamespaceGuest, upstream: Names) -> None:
    """Unreachable upstream: 2x5 s then NXDOMAIN [w]; better: SERVFAIL, before the guest's resolver gives up"""
    upstream.silent = True
    try:
        began = time.monotonic()
        assert lookup(guest, "unreachable.example.test.") == ("SERVFAIL", [])
        assert time.monotonic() - began < 4
    finally:
        upstream.silent = False


def test_an_old_answer_serves_when_all_upstreams_fail(guest: NamespaceGuest, upstream: Names) -> None:
    """issue: stale answers when all upstreams fail"""

    def ttl() -> int:
        answer = ask(guest, dns.message.make_query("short.example.test.", "A"))
        assert [item.to_text() for item in answer.answer[0]] == ["192.0.2.40"]
        return answer.answer[0].ttl

    assert ttl() <= 1
    upstream.silent = True
    try:
        wait_for(lambda: ttl() == 30, 10, "the time of the answer to pass")
    finally:
        upstream.silent = False


def test_an_address_is_no_name(guest: NamespaceGuest, upstream: Names) -> None:
    """IP-literal names NXDOMAIN."""
    assert lookup(guest, "192.0.2.1.") == ("NXDOMAIN", [])
    assert ("192.0.2.1.", "A") not in upstream.questions


def test_a_domain_may_have_servers_of_its_own(tmp_path: Path) -> None:
    """issue: per-domain upstreams (`dns.upstreams: {corp.example.: [10.0.0.1]}`)"""
    file = tmp_path / "moorage.yaml"
    file.write_text('dns: {upstreams: {corp.test.: ["127.0.0.1:5300"]}}\n')
    with (
        make_host() as host,
        dns_server(host, ZONE) as usual,
        dns_server(host, "known.corp.test. 5 IN A 10.9.9.9\n", port=5300) as corp,
        Service(host, "--config", str(file)) as service,
        attached(service, tmp_path) as guest,
    ):
        assert lookup(guest, "known.corp.test.") == ("NOERROR", ["10.9.9.9"])
        assert lookup(guest, "www.example.test.") == ("NOERROR", ["192.0.2.10"])
        assert corp.questions == [("known.corp.test.", "A")]
        assert usual.questions == [("www.example.test.", "A")]


def test_a_guest_is_known_by_the_name_it_gave(guest: NamespaceGuest, service: Service, tmp_path: Path) -> None:
    """issue: the guest's DHCP host name resolves on its network (`NAME.NETWORK.internal.`)"""
    with attached(service, tmp_path) as other:
        expected = ("NOERROR", [guest.lease.ip])
        wait_for(lambda: lookup(other, "tester.default.internal.") == expected, 10, "the name")
        reverse = ".".join(reversed(guest.lease.ip.split("."))) + ".in-addr.arpa."
        assert lookup(other, reverse, "PTR") == ("NOERROR", ["tester.default.internal."])
        assert lookup(other, "host.default.internal.") == ("NOERROR", [HOST])
        assert lookup(other, "nobody.default.internal.") == ("NXDOMAIN", [])


# --- section 5: the routes


def test_zones_are_listed_as_gvproxy_lists_them(service: Service) -> None:
    """`/services/dns/all`: `[{"Name","Records":[{"Name","IP"[,"Regexp"]}] or null,"DefaultIP":""}]`"""
    records = '[{"Name":"gateway","IP":"192.168.127.1"},{"Name":"host","IP":"192.168.127.254"}]'
    for method in ("GET", "POST", "PUT"):
        status, text = service.request(method, ALL)
        assert status == 200
        assert text.startswith(
            f'[{{"Name":"containers.internal.","Records":{records},"DefaultIP":""}},'
            f'{{"Name":"docker.internal.","Records":{records},"DefaultIP":""}}'
        )
        assert text.endswith("]\n")


def test_the_transcripts_zone_is_added_and_listed(guest: NamespaceGuest, service: Service) -> None:
    """POST dns/add `{"Name":"test.internal.", ...}`: 200; listed as ..."""
    body = {
        "Name": "test.internal.",
        "Records": [record("gateway", "192.168.127.1"), by_regexp("^a.*", "1.2.3.4")],
        "DefaultIP": "9.9.9.9",
    }
    assert service.request("POST", ADD, body) == (200, "")
    assert (
        '{"Name":"test.internal.","Records":[{"Name":"gateway","IP":"192.168.127.1"},'
        '{"Name":"","IP":"1.2.3.4","Regexp":"^a.*"}],"DefaultIP":"9.9.9.9"}'
    ) in service.request("GET", ALL)[1]
    for name, address in (("gateway", GATEWAY), ("abc", "1.2.3.4"), ("x.y", "9.9.9.9")):
        assert lookup(guest, f"{name}.test.internal.") == ("NOERROR", [address])


def test_added_records_go_before_the_old(guest: NamespaceGuest, service: Service, zone: str) -> None:
    """Same name: new records go before the old, DefaultIP replaced (even by empty), position kept"""
    add(service, zone, record("a", "10.0.0.1"), record("b", "10.0.0.2"), DefaultIP="9.9.9.9")
    add(service, f"after.{zone}")
    position = [one["Name"] for one in service.get(ALL)].index(zone)
    add(service, zone, by_regexp("^a", "10.0.0.3"))
    listed = service.get(ALL)[position]
    assert (listed["Name"], listed["DefaultIP"]) == (zone, "")
    assert [one["Name"] for one in listed["Records"]] == ["", "a", "b"]
    assert lookup(guest, f"a.{zone}") == ("NOERROR", ["10.0.0.3"])
    assert lookup(guest, f"c.{zone}") == ("NXDOMAIN", [])


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b"junk", "invalid character 'j' looking for beginning of value"),
        (b"[]", "json: cannot unmarshal array into Go value of type types.Zone"),
        ({"Name": "x.", "DefaultIP": "x"}, "invalid IP address: x"),
        ({"Name": "x.", "Records": [{"Name": "a", "IP": "1.2.3"}]}, "invalid IP address: 1.2.3"),
        ({"Name": "x.", "Records": [{"Regexp": "(", "IP": "1.2.3.4"}]}, "error parsing regexp: missing closing ): `(`"),
        ({"Name": "x.", "Records": [{"Regexp": "a(?=b)", "IP": "1.2.3.4"}]}, "error parsing regexp: invalid or"),
    ],
)
def test_what_is_no_zone_is_refused_in_gvproxys_words(service: Service, body: object, text: str) -> None:
    """400 `post only`, JSON text, `invalid IP address: X`, `error parsing regexp: …`"""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, said = service.request("POST", ADD, data)
    assert (status, said[-1], said.startswith(text)) == (400, "\n", True), said
    assert service.request("GET", ADD) == (400, "post only\n")


def test_keys_of_a_zone_are_read_as_go_does(guest: NamespaceGuest, service: Service, zone: str) -> None:
    """keys case-insensitive, unknown keys and trailing text ignored"""
    body = f'{{"NAME":"{zone}","records":[{{"nAME":"a","ip":"10.0.0.1","x":1}}],"y":[2]}} and more'.encode()
    assert service.request("POST", ADD, body) == (200, "")
    assert lookup(guest, f"a.{zone}") == ("NOERROR", ["10.0.0.1"])
