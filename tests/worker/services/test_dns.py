import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.tsig
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.messages import Zone, ZoneRecord
from worker.services.dns import MAX_REGEXP_NAME, Answered, DnsServer, Forwarded, Query

ZONES = (
    Zone(
        "containers.internal.",
        (
            ZoneRecord("192.168.127.1", "gateway"),
            ZoneRecord("192.168.127.254", "host"),
            ZoneRecord("10.0.0.9", "deep.below"),
            ZoneRecord("10.0.0.7", regexp="^ga.*"),
            ZoneRecord("10.0.0.8", regexp="^web-[0-9]+$"),
            ZoneRecord("fd00::1", "six"),
            ZoneRecord("10.0.0.6", "both"),
            ZoneRecord("fd00::6", "both"),
        ),
    ),
    Zone("default.internal.", (), "9.9.9.9"),
)


@pytest.fixture
def server() -> DnsServer:
    return DnsServer(ZONES)


def ask(server: DnsServer, name: str, kind: str = "A") -> dns.message.Message:
    decision = server.receive(dns.message.make_query(name, kind).to_wire(), over_tcp=False)
    assert isinstance(decision, Answered)
    return dns.message.from_wire(decision.wire)


def addresses(message: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in message.answer for item in rrset]


def forward(server: DnsServer, query: dns.message.Message, over_tcp: bool = False) -> Query:
    decision = server.receive(query.to_wire(), over_tcp)
    assert isinstance(decision, Forwarded)
    return decision.query


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("gateway.containers.internal.", "192.168.127.1"),
        ("GateWay.Containers.INTERNAL.", "192.168.127.1"),
        ("garden.containers.internal.", "10.0.0.7"),
        ("web-12.containers.internal.", "10.0.0.8"),
        ("both.containers.internal.", "10.0.0.6"),
        ("anything.at.all.default.internal.", "9.9.9.9"),
        ("default.internal.", "9.9.9.9"),
    ],
)
def test_names_of_a_zone_are_answered(server: DnsServer, name: str, address: str) -> None:
    answer = ask(server, name)
    assert addresses(answer) == [address]
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.flags & dns.flags.RA
    assert answer.question[0].name.to_text() == name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gateway.containers.internal.", "AAAA"),
        ("gateway.containers.internal.", "TXT"),
        ("six.containers.internal.", "A"),
        ("containers.internal.", "A"),
        ("below.containers.internal.", "A"),
    ],
)
def test_a_name_without_the_asked_type_is_an_empty_answer(server: DnsServer, name: str, kind: str) -> None:
    answer = ask(server, name, kind)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


def test_aaaa_is_answered_where_the_record_is_one(server: DnsServer) -> None:
    assert addresses(ask(server, "six.containers.internal.", "AAAA")) == ["fd00::1"]
    assert addresses(ask(server, "both.containers.internal.", "AAAA")) == ["fd00::6"]


@pytest.mark.parametrize("name", ["nope.containers.internal.", "web-x.containers.internal."])
def test_an_unknown_name_of_a_zone_does_not_exist(server: DnsServer, name: str) -> None:
    assert ask(server, name).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("kind", ["A", "AAAA", "MX", "SRV", "TXT", "PTR", "NS", "TYPE65280", "HTTPS"])
@pytest.mark.parametrize("name", ["example.com.", "xcontainers.internal.", "internal."])
def test_everything_outside_the_zones_is_forwarded_as_it_is(server: DnsServer, name: str, kind: str) -> None:
    query = dns.message.make_query(name, kind)
    assert forward(server, query).wire == query.to_wire()


def test_a_zone_without_a_name_holds_every_name() -> None:
    server = DnsServer((Zone(""),))
    assert ask(server, "example.com.").rcode() == dns.rcode.NXDOMAIN


def test_a_record_that_cannot_be_used_is_left_out() -> None:
    zone = Zone("z.", (ZoneRecord("1.2.3.4", regexp="("), ZoneRecord("no address", "a"), ZoneRecord("1.1.1.1", "b")))
    assert addresses(ask(DnsServer((zone,)), "b.z.")) == ["1.1.1.1"]


def test_a_regexp_is_not_tried_on_a_long_name() -> None:
    server = DnsServer((Zone("z.", (ZoneRecord("1.2.3.4", regexp="^(a|\\.)+$"),)),))
    label = "a" * 63
    at_limit = f"{label}.{label}"
    assert len(at_limit) + 1 == MAX_REGEXP_NAME
    assert addresses(ask(server, f"{at_limit}.z.")) == ["1.2.3.4"]
    assert ask(server, f"{at_limit}.aa.z.").rcode() == dns.rcode.NXDOMAIN


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


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 3), (1, 0, 0, 0)])
def test_a_query_that_is_none_is_a_format_error(server: DnsServer, counts: tuple[int, ...]) -> None:
    wire = b"\x12\x34\1\0" + b"".join(count.to_bytes(2, "big") for count in counts)
    decision = server.receive(wire, over_tcp=False)
    assert isinstance(decision, Answered)
    assert (len(decision.wire), decision.wire[3] & 15) == (12, dns.rcode.FORMERR)


@pytest.mark.parametrize(("payload", "limit"), [(None, 512), (100, 512), (1232, 1232), (4096, 4096), (65000, 4096)])
def test_an_answer_over_udp_is_cut_to_what_the_client_takes(server: DnsServer, payload: int | None, limit: int) -> None:
    message = dns.message.make_query("big.example.", "TXT", use_edns=payload is not None, payload=payload or 0)
    query = forward(server, message)
    header = b"\xab\xcd\x81\x80" + bytes(8)
    whole = header + bytes(limit - len(header))
    assert server.fit(query, whole) == query.wire[:2] + whole[2:]
    cut = dns.message.from_wire(server.fit(query, whole + b"x"))
    assert cut.flags & dns.flags.TC
    assert (cut.id, cut.question, cut.answer) == (message.id, message.question, [])
    assert (cut.edns >= 0) == (payload is not None)
    assert server.counters["dns.truncated"] == 1


def test_an_answer_over_tcp_is_never_cut(server: DnsServer) -> None:
    query = forward(server, dns.message.make_query("big.example.", "TXT", use_edns=0, payload=512), over_tcp=True)
    whole = b"\xab\xcd\x81\x80" + bytes(60000)
    assert server.fit(query, whole) == query.wire[:2] + whole[2:]


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


def test_new_zones_take_effect_at_once(server: DnsServer) -> None:
    server.update((Zone("example.com.", (), "1.2.3.4"),))
    assert addresses(ask(server, "www.example.com.")) == ["1.2.3.4"]
    forward(server, dns.message.make_query("gateway.containers.internal.", "A"))


@given(
    st.binary(max_size=200), st.integers(0, 60), st.binary(max_size=30), st.sampled_from(["containers.internal.", "x."])
)
def test_no_bytes_raise(noise: bytes, at: int, patch: bytes, suffix: str) -> None:
    server = DnsServer(ZONES)
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
