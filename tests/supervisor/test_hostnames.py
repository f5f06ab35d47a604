from ipaddress import IPv4Network

import pytest

from proto.messages import Lease
from supervisor import hostnames
from supervisor.hostnames import HostNames, label_of
from supervisor.leases import LeasePool

NOW = 1000.0
FIXED = {"gateway": "10.0.0.1"}


class Scene:
    """A pool and the names of its guests."""

    def __init__(self) -> None:
        self.pool = LeasePool("default", IPv4Network("10.0.0.0/16"), (), 3600.0, lambda _: True, {})
        self.names = HostNames(self.pool, FIXED)

    def lease(self, number: int, hostname: str, now: float = NOW) -> Lease:
        mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
        lease = self.pool.request(f"vm{number}", mac, f"10.0.{number >> 8}.{number & 255}", hostname, True, now)
        self.names.claim(lease, now)
        return lease

    def guests(self, now: float = NOW) -> dict[str, str]:
        table = dict(self.names.table(now))
        assert {name: table.pop(name) for name in FIXED} == FIXED
        return table


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("web", "web"),
        ("Web-1.example.com", "web-1"),
        ("", ""),
        ("-web", ""),
        ("web-", ""),
        (".web", ""),
        ("a" * 63, "a" * 63),
        ("a" * 64, ""),
        ("we b", ""),
        ("web\n", ""),
        ("w\u00e9b", ""),
    ],
)
def test_a_name_is_the_first_label_of_what_a_guest_says(said: str, label: str) -> None:
    assert label_of(said) == label


def test_the_first_of_two_guests_keeps_their_name_while_its_lease_runs() -> None:
    scene = Scene()
    scene.lease(2, "web")
    scene.lease(3, "web", NOW + 1800)
    assert scene.guests(NOW + 1800) == {"web": "10.0.0.2"}
    scene.lease(2, "web", NOW + 1800)
    scene.lease(3, "web", NOW + 3600)
    assert scene.guests(NOW + 3600) == {"web": "10.0.0.2"}
    assert scene.guests(NOW + 5400) == {}
    scene.lease(3, "web", NOW + 5400)
    assert scene.guests(NOW + 5400) == {"web": "10.0.0.3"}


def test_a_guest_has_one_name_and_gives_up_the_one_before() -> None:
    scene = Scene()
    scene.lease(2, "web")
    scene.lease(2, "db")
    scene.lease(3, "web")
    assert scene.guests() == {"db": "10.0.0.2", "web": "10.0.0.3"}
    scene.lease(2, "web")
    assert scene.guests() == {"web": "10.0.0.3"}


def test_a_name_ends_with_its_lease() -> None:
    scene = Scene()
    lease = scene.lease(2, "web")
    scene.pool.release("vm2", lease.mac, lease.ip, False, NOW + 1)
    scene.names.changed()
    assert scene.guests(NOW + 1) == {}


def test_the_gateways_name_is_not_to_be_had() -> None:
    scene = Scene()
    scene.lease(2, "gateway")
    assert scene.guests() == {}


def test_a_renewal_changes_nothing() -> None:
    scene = Scene()
    scene.lease(2, "web")
    before = scene.names.table(NOW)
    scene.lease(2, "web", NOW + 1800)
    assert scene.names.table(NOW + 1800) is before


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostnames, "MAX_NAMES", 3)
    scene = Scene()
    for number in range(2, 10):
        scene.lease(number, f"web{number}")
    assert len(scene.guests()) == 3
