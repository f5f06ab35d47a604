from dataclasses import replace

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.tsig
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto.messages import Network, Zone, ZoneRecord
from worker.services.dns import Answered, DnsServer, Forwarded, Query

ZONES = (
    Zone("containers.internal.", (ZoneRecord("192.168.127.1", "gateway"), ZoneRecord("fd00::1", "gateway"))),
    Zone("default.internal.", (), "9.9.9.9"),
)


@pytest.fixture
def server(network: Network) -> DnsServer:
    return DnsServer(replace(network, zones=ZONES, hosts={"web": "192.168.127.2"}))


def ask(server: DnsServer, name: str, kind: str = "A") -> dns.message.Message:
    decision = server.receive(dns.message.make_query(name, kind).to_wire(), over_tcp=False)
    assert isinstance(decision, Answered)
    return dns.message.from_wire(decision.wire)


def rdata(message: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in message.answer for item in rrset]


def forward(server: DnsServer, query: dns.message.Message, over_tcp: bool = False) -> Query:
    decision = server.receive(query.to_wire(), over_tcp)
    assert isinstance(decision, Forwarded)
    return decision.query


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("GateWay.Containers.INTERNAL.", "A", ["192.168.127.1"]),
        ("gateway.containers.internal.", "AAAA", ["fd00::1"]),
        ("gateway.containers.internal.", "ANY", ["192.168.127.1", "fd00::1"]),
        ("gateway.containers.internal.", "TXT", []),
        ("2.127.168.192.in-addr.arpa.", "PTR", ["web.default.internal."]),
    ],
)
def test_a_local_name_is_answered_under_the_name_that_was_asked(
    server: DnsServer, name: str, kind: str, expected: list[str]
) -> None:
    answer = ask(server, name, kind)
    assert rdata(answer) == expected
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.question[0].name.to_text() == name
    assert all((rrset.name.to_text(), rrset.ttl) == (name, 0) for rrset in answer.answer)


def test_an_unknown_name_of_a_zone_does_not_exist(server: DnsServer) -> None:
    assert ask(server, "nope.containers.internal.").rcode() == dns.rcode.NXDOMAIN
    assert server.counters["dns.nxdomain"] == 1


@pytest.mark.parametrize("kind", ["A", "AAAA", "MX", "SRV", "TXT", "PTR", "NS", "TYPE65280", "HTTPS"])
@pytest.mark.parametrize("name", ["example.com.", "xcontainers.internal.", "internal."])
def test_everything_else_is_forwarded_whatever_its_type(server: DnsServer, name: str, kind: str) -> None:
    query = dns.message.make_query(name, kind)
    assert forward(server, query).wire == query.to_wire()


def test_a_dot_inside_a_label_is_no_border_of_a_zone(server: DnsServer) -> None:
    assert forward(server, dns.message.make_query(r"gateway.x\.containers.internal.", "A")).name.count(".") == 2
    assert ask(server, r"a\.b.containers.internal.").rcode() == dns.rcode.NXDOMAIN
    assert forward(server, dns.message.make_query(r"\195\132.Example.com.", "A")).name == "\u00c3\u0084.example.com"


def test_a_name_of_another_class_is_forwarded(server: DnsServer) -> None:
    query = dns.message.make_query("gateway.containers.internal.", "TXT", rdclass="CH")
    assert forward(server, query).wire == query.to_wire()


def test_of_a_guests_edns_only_size_and_do_go_on(server: DnsServer) -> None:
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    query = dns.message.make_query("example.com.", "A", payload=1000, want_dnssec=True, options=[cookie])
    query.flags |= dns.flags.CD | dns.flags.AD | dns.flags.RA
    passed_on = dns.message.from_wire(forward(server, query).wire)
    assert (passed_on.payload, passed_on.options, passed_on.ednsflags) == (4096, (), dns.flags.DO)
    assert passed_on.flags == dns.flags.RD | dns.flags.CD | dns.flags.AD


def test_an_edns_version_to_come_is_refused_by_number(server: DnsServer) -> None:
    decision = server.receive(dns.message.make_query("example.com.", "A", use_edns=1).to_wire(), over_tcp=False)
    assert isinstance(decision, Answered)
    assert dns.message.from_wire(decision.wire).rcode() == dns.rcode.BADVERS


def test_queries_with_one_answer_have_one_key(server: DnsServer) -> None:
    key = forward(server, dns.message.make_query("example.com.", "A")).key
    assert forward(server, dns.message.make_query("EXAMPLE.com.", "A"), over_tcp=True).key == key
    others = (
        dns.message.make_query("example.com.", "AAAA"),
        dns.message.make_query("example.org.", "A"),
        dns.message.make_query("example.com.", "A", use_edns=0),
        dns.message.make_query("example.com.", "A", want_dnssec=True),
        dns.message.make_query("example.com.", "A", flags=0),
        dns.message.make_query("example.com.", "A", flags=dns.flags.RD | dns.flags.CD),
    )
    assert len({key, *(forward(server, other).key for other in others)}) == 1 + len(others)


def test_responses_and_scraps_are_not_answered(server: DnsServer) -> None:
    response = dns.message.make_response(dns.message.make_query("example.com.", "A"))
    for wire in (b"", b"\0" * 11, response.to_wire()):
        assert server.receive(wire, over_tcp=False) is None
    assert server.counters["dns.malformed"] == 3


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_opcodes_are_not_implemented(server: DnsServer, opcode: int) -> None:
    decision = server.receive(b"\x12\x34" + bytes([opcode << 3, 0]) + bytes(8), over_tcp=False)
    assert isinstance(decision, Answered)
    assert decision.wire[:2] == b"\x12\x34"
    assert (decision.wire[2] >> 3 & 15, decision.wire[3] & 15) == (opcode, dns.rcode.NOTIMP)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (2, 0, 0, 0), (1, 2, 0, 0), (1, 0, 2, 0), (1, 0, 0, 3), (1, 0, 0, 0)])
def test_a_query_that_is_none_is_a_format_error(server: DnsServer, counts: tuple[int, ...]) -> None:
    wire = b"\x12\x34\1\0" + b"".join(count.to_bytes(2, "big") for count in counts)
    decision = server.receive(wire, over_tcp=False)
    assert isinstance(decision, Answered)
    assert (len(decision.wire), decision.wire[3] & 15) == (12, dns.rcode.FORMERR)


@pytest.mark.parametrize(("payload", "limit"), [(None, 512), (100, 512), (1232, 1232), (4096, 4096), (65000, 4096)])
def test_an_answer_over_udp_is_cut_to_what_the_client_takes(server: DnsServer, payload: int | None, limit: int) -> None:
    message = dns.message.make_query("big.example.", "TXT", use_edns=payload is not None, payload=payload or 0)
    query = forward(server, message)
    header = b"\xab\xcd\x81\x80\0\1" + bytes(6) + query.question
    whole = header + bytes(limit - len(header))
    assert server.fit(query, whole) == query.wire[:2] + whole[2:]
    cut = dns.message.from_wire(server.fit(query, whole + b"x"))
    assert cut.flags & dns.flags.TC
    assert (cut.id, cut.question, cut.answer) == (message.id, message.question, [])
    assert (cut.edns >= 0) == (payload is not None)
    assert server.counters["dns.truncated"] == 1


def test_an_answer_over_tcp_is_never_cut(server: DnsServer) -> None:
    query = forward(server, dns.message.make_query("big.example.", "TXT", use_edns=0, payload=512), over_tcp=True)
    whole = b"\xab\xcd\x81\x80\0\1" + bytes(6) + query.question + bytes(60000)
    assert server.fit(query, whole) == query.wire[:2] + whole[2:]


def test_an_answer_to_another_spelling_comes_back_in_the_clients(server: DnsServer) -> None:
    query = forward(server, dns.message.make_query("eXaMpLe.com.", "A"))
    answer = b"\xab\xcd\x81\x80\0\1" + bytes(6) + query.question.lower() + b"and more"
    assert server.fit(query, answer)[12:] == query.question + b"and more"


def test_a_failure_without_its_question_gets_it(server: DnsServer) -> None:
    message = dns.message.make_query("example.com.", "A")
    refused = dns.message.from_wire(server.fit(forward(server, message), b"\xab\xcd\x81\x85" + bytes(8)))
    assert (refused.rcode(), refused.question) == (dns.rcode.REFUSED, message.question)


def test_no_answer_is_a_server_failure(server: DnsServer) -> None:
    message = dns.message.make_query("example.com.", "A")
    failure = dns.message.from_wire(server.fit(forward(server, message), None))
    assert (failure.rcode(), failure.id, failure.question) == (dns.rcode.SERVFAIL, message.id, message.question)
    assert failure.flags & dns.flags.RD


def test_a_signed_query_is_refused(server: DnsServer) -> None:
    query = dns.message.make_query("gateway.containers.internal.", "A")
    query.use_tsig(dns.tsig.Key("key.", "c2VjcmV0"))
    decision = server.receive(query.to_wire(), over_tcp=False)
    assert isinstance(decision, Answered)
    assert decision.wire[3] & 15 == dns.rcode.FORMERR


def test_new_zones_and_hosts_take_effect_at_once(server: DnsServer, network: Network) -> None:
    server.update(replace(network, zones=(Zone("example.com.", (), "1.2.3.4"),), hosts={"db": "192.168.127.3"}))
    assert rdata(ask(server, "www.example.com.")) == ["1.2.3.4"]
    assert rdata(ask(server, "db.default.internal.")) == ["192.168.127.3"]
    forward(server, dns.message.make_query("gateway.containers.internal.", "A"))


@given(
    st.binary(max_size=200), st.integers(0, 60), st.binary(max_size=30), st.sampled_from(["containers.internal.", "x."])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_raise(network: Network, noise: bytes, at: int, patch: bytes, suffix: str) -> None:
    server = DnsServer(replace(network, zones=ZONES))
    query = dns.message.make_query(
        f"gateway.{suffix}", "A", use_edns=0, options=[dns.edns.GenericOption(dns.edns.OptionType.EXPIRE, b"x")]
    )
    wire = query.to_wire()
    header = b"\0\1\1\0\0\1\0\0\0\0\0\1"
    for candidate in (noise, header + noise, wire[:at] + patch + wire[at + len(patch) :]):
        for over_tcp in (False, True):
            decision = server.receive(candidate, over_tcp)
            if isinstance(decision, Forwarded):
                server.fit(decision.query, candidate)
                server.fit(decision.query, candidate * 30)
