from ipaddress import IPv4Network

import pytest

from proto.errors import RequestFailed
from proto.messages import LeaseRequest
from supervisor.hostnames import HostNames
from supervisor.leases import LeasePool
from supervisor.realm import MAC_CHANGES_IN, MAX_MAC_CHANGES, MAX_SEEN_PER_VM, Realm

GATEWAY_MAC = "5a:94:ef:e4:0c:dd"
NOW = 1_000_000.0
MAC, OTHER_MAC, THIRD_MAC = (f"52:54:00:00:00:0{number}" for number in (1, 2, 3))


class Place(Realm):
    """A realm with all VMs attached but those in `gone`."""

    def __init__(self, subnet: str = "192.168.127.0/24") -> None:
        self.gone: set[str] = {""}
        network = IPv4Network(subnet)
        pool = LeasePool("default", network, (network[1],), 3600.0, self.has, {})
        super().__init__(pool, HostNames(pool, {}), GATEWAY_MAC, self.has)

    def has(self, vm_id: str) -> bool:
        return vm_id not in self.gone

    def lease(self, vm_id: str, mac: str) -> str:
        return self.request_lease(LeaseRequest(vm_id, mac, commit=True), NOW).ip


def test_a_mac_belongs_to_the_vm_that_used_it_first() -> None:
    place = Place()
    assert place.claim_mac("vm1", MAC, NOW)
    assert place.claim_mac("vm1", MAC, NOW)
    assert not place.claim_mac("vm2", MAC, NOW + 1000)
    assert place.identity("vm2", NOW) == ("", ())


def test_the_gateways_mac_is_nobodys() -> None:
    place = Place()
    assert not place.claim_mac("vm1", GATEWAY_MAC, NOW)
    with pytest.raises(RequestFailed, match=f"MAC {GATEWAY_MAC} belongs to the gateway"):
        place.lease("vm1", GATEWAY_MAC)


def test_a_mac_is_free_when_its_vm_is_gone() -> None:
    place = Place()
    place.claim_mac("vm1", MAC, NOW)
    place.gone.add("vm1")
    assert place.claim_mac("vm2", MAC, NOW)


def test_a_vm_that_changes_its_mac_gives_up_the_one_before() -> None:
    place = Place()
    place.claim_mac("vm1", MAC, NOW)
    assert place.claim_mac("vm1", OTHER_MAC, NOW)
    assert place.identity("vm1", NOW)[0] == OTHER_MAC
    assert place.claim_mac("vm2", MAC, NOW)


def test_a_vm_that_keeps_changing_its_mac_has_to_wait() -> None:
    place = Place()
    changes = [place.claim_mac("vm1", (MAC, OTHER_MAC)[number % 2], NOW) for number in range(MAX_MAC_CHANGES + 1)]
    assert changes == [True] * MAX_MAC_CHANGES + [False]
    assert place.claim_mac("vm1", OTHER_MAC, NOW + MAC_CHANGES_IN)


def test_a_vm_gets_no_lease_for_the_mac_that_another_uses() -> None:
    place = Place()
    place.claim_mac("vm1", MAC, NOW)
    with pytest.raises(RequestFailed, match=f"MAC {MAC} belongs to vm1"):
        place.lease("vm2", MAC)


def test_a_vm_speaks_from_its_lease_and_from_nothing_else() -> None:
    place = Place()
    place.claim_mac("vm1", MAC, NOW)
    assert place.see("vm1", MAC, "192.168.127.50", NOW)
    assert place.identity("vm1", NOW) == (MAC, ("192.168.127.50",))
    ip = place.lease("vm1", MAC)
    assert place.identity("vm1", NOW) == (MAC, (ip,))


def test_a_vm_without_a_lease_speaks_from_what_nobody_else_has() -> None:
    place = Place()
    ip = place.lease("vm1", MAC)
    place.claim_mac("vm2", OTHER_MAC, NOW)
    assert not place.see("vm2", OTHER_MAC, ip, NOW)
    assert place.see("vm2", OTHER_MAC, "192.168.127.60", NOW)
    assert place.identity("vm2", NOW) == (OTHER_MAC, ("192.168.127.60",))
    assert not place.see("vm3", THIRD_MAC, "192.168.127.60", NOW)


def test_the_mac_table_holds_what_is_used_and_what_is_leased() -> None:
    place = Place()
    place.claim_mac("vm1", MAC, NOW)
    place.lease("vm1", OTHER_MAC)
    place.lease("vm2", THIRD_MAC)
    assert place.macs(NOW) == {MAC: "vm1", OTHER_MAC: "vm1", THIRD_MAC: "vm2"}
    place.gone.add("vm1")
    assert place.macs(NOW) == {THIRD_MAC: "vm2"}


def test_a_vm_cannot_claim_addresses_without_bound() -> None:
    place = Place("10.0.0.0/16")
    claimed = [place.see("vm1", MAC, f"10.0.{n >> 8}.{n & 255}", NOW) for n in range(2, MAX_SEEN_PER_VM + 3)]
    assert claimed == [True] * MAX_SEEN_PER_VM + [False]
