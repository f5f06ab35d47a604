import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.messages import Upstream
from worker.services import dns_cache
from worker.services.dns_cache import MAX_NEGATIVE_TTL, MAX_STALE, MAX_TTL, STALE_TTL, Cache, Entry

UPSTREAMS = (Upstream("10.0.0.1"),)
SOA = "example.com. 600 IN SOA ns.example.com. root.example.com. 1 7200 900 1209600 300"
A = "www.example.com. 300 IN A 192.0.2.1"
KEY = b"key"


def response(*answer: str, authority: str = "", rcode: int = 0, kind: str = "A", flags: int = 0) -> bytes:
    message = dns.message.make_response(dns.message.make_query("www.example.com.", kind, use_edns=0))
    message.flags |= flags
    message.set_rcode(dns.rcode.Rcode(rcode))
    for section, lines in ((message.answer, answer), (message.authority, (authority,) * bool(authority))):
        section.extend(dns.rrset.from_text(*line.split(maxsplit=4)) for line in lines)  # type: ignore[arg-type]
    return message.to_wire(max_size=65535)


def stored(wire: bytes, now: float = 0.0) -> Entry | None:
    cache = Cache()
    cache.put(KEY, wire, UPSTREAMS, now)
    return cache.get(KEY, now)


def ttls(wire: bytes) -> list[int]:
    message = dns.message.from_wire(wire)
    return [rrset.ttl for section in (message.answer, message.authority) for rrset in section]


@pytest.mark.parametrize(
    ("wire", "ttl"),
    [
        (response(A), 300),
        (response("www.example.com. 60 IN CNAME a.example.net.", "a.example.net. 300 IN A 192.0.2.1"), 60),
        (response("www.example.com. 999999 IN A 192.0.2.1"), MAX_TTL),
        (response(A, kind="ANY"), 300),
        (response(authority=SOA), 300),
        (response(authority=SOA, rcode=3), 300),
        (response(authority=SOA.replace(" 600 ", " 200 "), rcode=3), 200),
        (response(authority=SOA.replace(" 600 ", " 86400 ").removesuffix("300") + "86400", rcode=3), MAX_NEGATIVE_TTL),
        (response("www.example.com. 60 IN CNAME a.example.net.", authority=SOA, kind="AAAA"), 60),
    ],
    ids=["answer", "alias", "for ever", "any", "no data", "no name", "soa's own time", "negative for ever", "no aaaa"],
)
def test_an_answer_is_fresh_for_its_shortest_time(wire: bytes, ttl: int) -> None:
    entry = stored(wire)
    assert entry is not None
    assert entry.is_fresh(ttl - 1)
    assert not entry.is_fresh(ttl)


@pytest.mark.parametrize(
    "wire",
    [
        response("www.example.com. 0 IN A 192.0.2.1"),
        response(),
        response(rcode=3),
        response("www.example.com. 60 IN CNAME a.example.net."),
        response(authority="example.com. 600 IN NS ns.example.com."),
        response(A, rcode=2),
        response(A, rcode=5),
        response(A, flags=dns.flags.TC),
        response(A)[:-20],
        b"\0\0\x81\x80" + bytes(8),
        response("www.example.com. 300 IN TXT " + '"' + "x" * 200 + '" ' + ('"' + "y" * 200 + '" ') * 100, kind="TXT"),
    ],
    ids=[
        *("ttl 0", "no data without soa", "no name without soa", "alias to nothing", "referral", "servfail", "refused"),
        *("truncated", "cut short", "without question", "large"),
    ],
)
def test_what_does_not_say_how_long_it_is_good_is_not_kept(wire: bytes) -> None:
    assert stored(wire) is None


def test_times_are_counted_down() -> None:
    entry = stored(response(A, authority=SOA), 1000.0)
    assert entry is not None
    assert entry.aged(1000.9) == entry.wire
    assert ttls(entry.aged(1100.0)) == [200, 500]
    assert ttls(entry.aged(1350.0)) == [0, 250]
    assert ttls(entry.stale()) == [STALE_TTL] * 2
    assert dns.message.from_wire(entry.aged(1100.0)).edns == 0


def test_an_answer_is_kept_for_a_while_after_its_time() -> None:
    cache = Cache()
    cache.put(KEY, response(A), UPSTREAMS, 0.0)
    assert cache.get(KEY, 300.0 + MAX_STALE - 1) is not None
    assert cache.get(KEY, 300.0 + MAX_STALE) is None
    assert cache.counters == {"dns.cache_entries": 0, "dns.cache_bytes": 0, "dns.cache_evicted": 0}


def test_what_was_not_asked_for_longest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_cache, "MAX_ENTRIES", 2)
    cache = Cache()
    cache.put(b"a", response(A), UPSTREAMS, 0.0)
    cache.put(b"b", response(A), UPSTREAMS, 0.0)
    cache.get(b"a", 0.0)
    cache.put(b"c", response(A), UPSTREAMS, 0.0)
    assert [cache.get(key, 0.0) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.counters["dns.cache_evicted"] == 1


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_cache, "MAX_BYTES", 10_000)
    cache = Cache()
    for number in range(1000):
        cache.put(number.to_bytes(4, "big"), response(A), UPSTREAMS, 0.0)
        assert cache.counters["dns.cache_bytes"] <= 10_000
    cache.put((999).to_bytes(4, "big"), response(A), UPSTREAMS, 0.0)
    assert 1 < cache.counters["dns.cache_entries"] < 30


@given(st.binary(max_size=100), st.integers(0, 100), st.binary(max_size=20))
def test_no_bytes_raise(noise: bytes, at: int, patch: bytes) -> None:
    good = response(A, authority=SOA)
    for wire in (good[:12] + noise, good[:at] + patch + good[at + len(patch) :]):
        if len(wire) >= 12:
            entry = stored(wire)
            if entry is not None:
                assert len(entry.aged(10.0)) == len(entry.stale()) == len(wire)
