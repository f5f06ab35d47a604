from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from types import MappingProxyType

import pytest

from proto.errors import RequestFailed
from proto.messages import Lease
from supervisor.leases import DECLINE_TIME, MAX_LEASES_PER_VM, OFFER_TIME, LeasePool

NOW = 1_000_000.0
LEASE_TIME = 3600.0


def mac(number: int) -> str:
    return f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"


class Pool(LeasePool):
    """A pool with all VMs attached but those in `gone`; asks with fewer words."""

    def __init__(self, subnet: str = "192.168.127.0/24", static: Mapping[str, str] = MappingProxyType({})) -> None:
        self.gone: set[str] = {""}
        network = IPv4Network(subnet)
        reserved = (network.network_address + 1, network.broadcast_address - 1)
        super().__init__("default", network, reserved, LEASE_TIME, lambda vm_id: vm_id not in self.gone, static)

    def take(self, number: int, ip: str = "", *, vm: str = "", commit: bool = True, now: float = NOW) -> str:
        return self.request(vm or f"vm{number}", mac(number), ip, "", commit, now).ip


def test_the_first_vm_gets_dot_2_and_the_next_the_next() -> None:
    pool = Pool()
    assert [pool.take(number) for number in range(3)] == ["192.168.127.2", "192.168.127.3", "192.168.127.4"]


def test_a_mac_keeps_its_address_also_after_the_lease_ended() -> None:
    pool = Pool()
    assert pool.take(1) == "192.168.127.2"
    assert pool.take(2) == "192.168.127.3"
    assert pool.take(1, now=NOW + 10 * LEASE_TIME) == "192.168.127.2"


def test_an_offer_is_what_the_request_gets() -> None:
    pool = Pool()
    offered = pool.take(1, commit=False)
    assert pool.take(2) != offered
    assert pool.take(1, offered) == offered


def test_an_offer_nobody_takes_is_forgotten() -> None:
    pool = Pool()
    pool.take(1, commit=False)
    assert pool.take(2, now=NOW + OFFER_TIME) == "192.168.127.2"


def test_a_discover_does_not_shorten_the_running_lease() -> None:
    pool = Pool()
    pool.take(1)
    assert pool.request("vm1", mac(1), "", "", False, NOW + 1).expires_at == NOW + LEASE_TIME
    pool.take(2, now=NOW + OFFER_TIME + 2)
    assert pool.owner("192.168.127.2", NOW + OFFER_TIME + 2) is not None


def test_a_free_address_may_be_asked_for() -> None:
    assert Pool().take(1, "192.168.127.77") == "192.168.127.77"


@pytest.mark.parametrize(
    "ip", ["192.168.127.0", "192.168.127.1", "192.168.127.254", "192.168.127.255", "10.0.0.1", "x"]
)
def test_reserved_and_foreign_addresses_are_refused_in_a_request_and_ignored_in_a_discover(ip: str) -> None:
    pool = Pool()
    with pytest.raises(RequestFailed, match="not to be had"):
        pool.take(1, ip)
    assert pool.take(1, ip, commit=False) == "192.168.127.2"


def test_a_request_for_another_address_than_its_own_is_refused() -> None:
    pool = Pool()
    pool.take(1)
    with pytest.raises(RequestFailed):
        pool.take(1, "192.168.127.9")
    with pytest.raises(RequestFailed):
        pool.take(2, "192.168.127.2")


def test_a_full_pool_recycles_the_lease_that_ended_first_and_refuses_when_none_has() -> None:
    pool = Pool("10.0.0.0/29")  # .2 to .5
    for number in range(4):
        pool.take(number, now=NOW + number)
    with pytest.raises(RequestFailed, match="no free address"):
        pool.take(9)
    assert pool.take(9, now=NOW + 10 * LEASE_TIME) == "10.0.0.2"


def test_a_released_address_is_kept_for_its_mac_but_free_for_who_asks() -> None:
    pool = Pool()
    pool.take(1)
    pool.release("vm1", mac(1), "192.168.127.2", False, NOW)
    assert pool.owner("192.168.127.2", NOW) is None
    assert pool.take(2) == "192.168.127.3"
    assert pool.take(1) == "192.168.127.2"


def test_a_declined_address_is_left_alone_for_a_while() -> None:
    pool = Pool()
    pool.take(1)
    pool.release("vm1", mac(1), "192.168.127.2", True, NOW)
    assert pool.take(1) == "192.168.127.3"
    assert pool.take(2, now=NOW + DECLINE_TIME) == "192.168.127.2"


def test_the_mac_of_an_attached_vm_is_not_for_another() -> None:
    pool = Pool()
    pool.take(1)
    with pytest.raises(RequestFailed, match="belongs to vm1"):
        pool.take(1, vm="vm2")
    assert pool.release("vm2", mac(1), "192.168.127.2", False, NOW) is None
    pool.gone.add("vm1")
    assert pool.take(1, vm="vm2") == "192.168.127.2"


def test_one_vm_cannot_take_the_whole_pool() -> None:
    pool = Pool()
    for number in range(MAX_LEASES_PER_VM):
        pool.take(number, vm="vm1")
    with pytest.raises(RequestFailed, match="already has 64 leases"):
        pool.take(MAX_LEASES_PER_VM, vm="vm1")
    assert pool.take(MAX_LEASES_PER_VM, vm="vm2")


def test_a_mac_that_is_none_is_refused() -> None:
    with pytest.raises(RequestFailed, match="not a MAC"):
        Pool().request("vm1", "52:54:00", "", "", True, NOW)


def test_leases_of_another_subnet_are_dropped_at_restore() -> None:
    pool = Pool()
    pool.restore(
        [
            Lease("default", "10.0.0.2", mac(1), NOW + 1),
            Lease("default", "192.168.127.9", mac(2), NOW + 1),
            Lease("default", "192.168.127.254", mac(3), NOW + 1),
        ]
    )
    assert [lease.mac for lease in pool] == [mac(2)]
    assert pool.take(1) == "192.168.127.2"


def test_every_address_of_a_small_network_is_given_out_once() -> None:
    pool = Pool("10.0.0.0/28")
    given = {pool.take(number) for number in range(12)}
    assert given == {str(IPv4Address("10.0.0.2") + offset) for offset in range(12)}


def test_a_static_lease_is_its_macs_and_nobody_elses() -> None:
    pool = Pool(static={"192.168.127.2": mac(7), "192.168.127.9": mac(8)})
    assert pool.take(1) == "192.168.127.3"
    assert pool.take(2, "192.168.127.9", commit=False) == "192.168.127.4"
    assert pool.take(7, commit=False) == pool.take(7) == "192.168.127.2"
    assert pool.take(8, "192.168.127.50", commit=False) == "192.168.127.9"
    assert [lease.mac for lease in pool if lease.static] == [mac(7), mac(8)]
    with pytest.raises(RequestFailed, match=r"has 192\.168\.127\.9, not 192\.168\.127\.50"):
        pool.take(8, "192.168.127.50")
    with pytest.raises(RequestFailed, match="not to be had"):
        pool.take(3, "192.168.127.9")


def test_an_address_with_a_static_lease_cannot_be_used_without_it() -> None:
    pool = Pool(static={"192.168.127.9": mac(8)})
    assert not pool.adopt("vm1", mac(1), "192.168.127.9", NOW)
    assert pool.adopt("vm8", mac(8), "192.168.127.9", NOW)


def test_a_static_lease_goes_before_leases_of_an_earlier_run() -> None:
    pool = Pool(static={"192.168.127.9": mac(8)})
    pool.restore(
        Lease("default", ip, mac(number), NOW + 60) for number, ip in ((1, "192.168.127.9"), (8, "192.168.127.3"))
    )
    assert not list(pool)
    assert (pool.take(1), pool.take(8)) == ("192.168.127.2", "192.168.127.9")
