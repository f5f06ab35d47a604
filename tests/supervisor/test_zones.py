import pytest

from proto.errors import RequestFailed
from proto.messages import Zone, ZoneRecord
from supervisor.zones import MAX_RECORDS_PER_ZONE, MAX_SIZE, MAX_ZONES, NetworkZones, check_zone

OWN = Zone("containers.internal.", (ZoneRecord("192.168.127.1", "gateway"), ZoneRecord("192.168.127.254", "host")))


def test_added_records_go_before_the_old_and_the_zone_keeps_its_place() -> None:
    zones = NetworkZones((OWN, Zone("b.")), ())
    zones.add(Zone("c.", (ZoneRecord("1.1.1.1", "a"),)))
    zones.add(Zone("containers.internal.", (ZoneRecord("1.2.3.4", "x"),), "9.9.9.9"))
    added = zones.add(Zone("containers.internal.", (ZoneRecord("1.2.3.5", "y"),), "9.9.9.8", authoritative=False))
    assert [zone.name for zone in zones.all] == ["containers.internal.", "b.", "c."]
    assert [record.name for record in zones.all[0].records] == ["y", "x", "gateway", "host"]
    assert (zones.all[0].default_ip, zones.all[0].authoritative) == ("9.9.9.8", False)
    assert NetworkZones((OWN, Zone("b.")), (added, zones.all[2])).all == zones.all


def test_an_empty_default_address_replaces_the_old_and_what_is_authoritative_stays() -> None:
    zones = NetworkZones((), ())
    zones.add(Zone("a.", (), "9.9.9.9", authoritative=True))
    zones.add(Zone("a."))
    assert zones.all == (Zone("a.", (), "", authoritative=True),)


def test_what_is_added_again_does_not_pile_up() -> None:
    zones = NetworkZones((), ())
    for last in range(1, 255):
        zones.add(
            Zone("a.", (ZoneRecord(f"10.0.0.{last}", "x"), ZoneRecord("fd00::1", "x"), ZoneRecord("1.1.1.1", "y")))
        )
    assert zones.all[0].records == (
        ZoneRecord("10.0.0.254", "x"),
        ZoneRecord("fd00::1", "x"),
        ZoneRecord("1.1.1.1", "y"),
    )


def test_what_was_added_is_taken_back_and_what_was_there_stays() -> None:
    zones = NetworkZones((OWN,), ())
    zones.add(Zone(OWN.name, (ZoneRecord("1.1.1.1", "a"),), "9.9.9.9"))
    zones.add(Zone("a."))
    zones.remove(OWN.name)
    zones.remove("a.")
    assert zones.all == (OWN,)
    for name in (OWN.name, "a."):
        with pytest.raises(RequestFailed, match=f"zone '{name}' was not added over the API"):
            zones.remove(name)


@pytest.mark.parametrize(
    ("text", "written"),
    [("fd00:0::1", "fd00::1"), ("::ffff:1.2.3.4", "1.2.3.4"), ("1.2.3.4", "1.2.3.4"), ("", "")],
)
def test_addresses_are_kept_as_they_are_usually_written(text: str, written: str) -> None:
    assert check_zone(Zone("a.", (ZoneRecord(text, "x"),), text)) == Zone("a.", (ZoneRecord(written, "x"),), written)


@pytest.mark.parametrize("address", ["1.2.3", "x", "01.2.3.4", "1.2.3.4/8", "fe80::1%eth0"])
def test_an_address_that_is_none_is_refused_in_gvproxys_words(address: str) -> None:
    for zone in (Zone("x.", (ZoneRecord(address),)), Zone("x.", default_ip=address)):
        with pytest.raises(RequestFailed) as refused:
            NetworkZones((), ()).add(zone)
        assert refused.value.failure.message == f"invalid IP address: {address}"


@pytest.mark.parametrize(
    ("regexp", "reason"),
    [
        ("(", "missing closing ): `(`"),
        (")", "unexpected ): `)`"),
        ("[a", "missing closing ]: `[a`"),
        ("a**", "invalid nested repetition operator: `**`"),
        ("*", "missing argument to repetition operator: `*`"),
        ("\\", "trailing backslash at end of expression: ``"),
        ("a{2000}", "invalid repeat count: `{2000}`"),
        ("(?=x)", "invalid or unsupported Perl syntax: `(?=`"),
        ("\\q", "invalid escape sequence: `\\q`"),
        ("[z-a]", "invalid character class range: `z-a`"),
    ],
)
def test_a_regexp_that_is_none_is_refused_in_gos_words(regexp: str, reason: str) -> None:
    with pytest.raises(RequestFailed) as refused:
        check_zone(Zone("x.", (ZoneRecord("1.2.3.4", regexp=regexp),)))
    assert refused.value.failure.message == f"error parsing regexp: {reason}"


def test_zones_are_bounded_in_number_records_and_bytes() -> None:
    zones = NetworkZones(tuple(Zone(f"z{number}.") for number in range(MAX_ZONES)), ())
    before = zones.all
    records = tuple(ZoneRecord("1.2.3.4", f"x{number}") for number in range(MAX_RECORDS_PER_ZONE + 1))
    large = (ZoneRecord("1.2.3.4", "x" * MAX_SIZE),)
    for zone in (Zone("one.more."), Zone("z0.", records), Zone("z0.", large), Zone("z0.", large * 10)):
        with pytest.raises(RequestFailed, match=r"more than \d+ (zones|bytes)"):
            zones.add(zone)
    assert zones.all == before
