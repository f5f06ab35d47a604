from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from proto.messages import LeaseRelease, LeaseRequest, NetworkMode, Upstream, Zone, ZoneRecord
from supervisor.config import NetworkSpec
from supervisor.dns_settings import DnsSettings
from supervisor.networks import Network
from supervisor.resolver import HostResolver
from supervisor.state import State

NOW = 1_000_000.0
SUBNET = IPv4Network("192.168.127.0/24")
MAC = "52:54:00:00:00:01"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "moorage.db")
    yield state
    state.close()


@pytest.fixture
def network(state: State) -> Network:
    return make(state)


def make(state: State, subnet: str = "192.168.127.0/24", mode: NetworkMode = "shared") -> Network:
    spec = NetworkSpec(IPv4Network(subnet), 1500, mode)
    return Network("default", spec, state, lambda vm_id: vm_id in ("vm1", "vm2"))


def lease(vm_id: str = "vm1", mac: str = MAC, commit: bool = True) -> LeaseRequest:
    return LeaseRequest(vm_id, mac, commit=commit)


def test_gateway_and_host_alias_are_first_and_last_of_any_subnet(state: State) -> None:
    described = make(state, "10.0.0.0/20").describe("vm1", NOW)
    assert (described.gateway_ip, described.host_ip) == ("10.0.0.1", "10.0.15.254")
    assert described.nat == {"10.0.15.254": "127.0.0.1"}


def test_the_default_zones_name_gateway_and_host(network: Network) -> None:
    records = (ZoneRecord("192.168.127.1", name="gateway"), ZoneRecord("192.168.127.254", name="host"))
    assert network.zones == (Zone("containers.internal.", records), Zone("docker.internal.", records))


def test_an_added_zone_is_told_to_workers_and_survives(network: Network, state: State) -> None:
    network.add_zone(Zone("containers.internal.", (ZoneRecord("1.2.3.4", name="x"),), "9.9.9.9"))
    network.add_zone(Zone("a.example.", authoritative=False))
    assert [record.name for record in network.zones[0].records] == ["x", "gateway", "host"]
    assert network.describe("vm1", NOW).zones == network.zones == make(state).zones
    network.remove_zone("a.example.")
    assert network.describe("vm1", NOW).zones == make(state).zones
    assert [zone.name for zone in network.zones] == ["containers.internal.", "docker.internal."]
    moved = make(state, "10.0.0.0/24").zones[0]
    assert [record.ip for record in moved.records] == ["1.2.3.4", "10.0.0.1", "10.0.0.254"]


def test_only_a_committed_lease_survives(network: Network, state: State) -> None:
    network.request_lease(lease(commit=False), NOW)
    assert make(state).leases(NOW) == ()
    network.request_lease(lease(), NOW)
    assert [one.mac for one in make(state).leases(NOW)] == [MAC]


def test_a_declined_address_is_forgotten_also_on_disk(network: Network, state: State) -> None:
    network.request_lease(lease(), NOW)
    network.release_lease(LeaseRelease("vm1", MAC, "192.168.127.2", declined=True), NOW)
    assert state.leases("default") == []


def test_a_vm_holds_an_unleased_address_it_was_seen_to_use_until_it_leaves(network: Network) -> None:
    assert network.see("vm1", MAC, "192.168.127.50", NOW)
    assert not network.see("vm2", "52:54:00:00:00:02", "192.168.127.50", NOW)
    assert network.holder("192.168.127.50", NOW) == "vm1"
    network.forget("vm1")
    assert network.holder("192.168.127.50", NOW) == ""


@pytest.mark.parametrize("ip", ["192.168.127.1", "192.168.127.254", "10.0.0.1", "x"])
def test_the_gateways_own_and_foreign_addresses_are_nobodys(network: Network, ip: str) -> None:
    assert not network.see("vm1", MAC, ip, NOW)
    assert network.holder(ip, NOW) == ""


def test_a_lease_goes_before_use(network: Network) -> None:
    network.see("vm2", "52:54:00:00:00:02", "192.168.127.2", NOW)
    network.request_lease(lease(), NOW)
    assert network.holder("192.168.127.2", NOW) == "vm1"


def test_isolated_vms_have_the_same_first_address_even_with_one_mac(state: State) -> None:
    tenants = make(state, mode="isolated")
    leases = [tenants.request_lease(lease(vm_id), NOW) for vm_id in ("vm1", "vm2")]
    assert [(one.ip, one.vm_id) for one in leases] == [("192.168.127.2", "vm1"), ("192.168.127.2", "vm2")]
    assert tenants.claim_mac("vm1", MAC, NOW)
    assert tenants.claim_mac("vm2", MAC, NOW)
    assert [tenants.holder("192.168.127.2", NOW, vm_id) for vm_id in ("vm1", "vm2", "")] == ["vm1", "vm2", ""]


def test_leases_of_isolated_vms_end_with_them(state: State) -> None:
    tenants = make(state, mode="isolated")
    tenants.request_lease(lease(), NOW)
    assert len(tenants.leases(NOW)) == 1
    tenants.forget("vm1")
    assert tenants.leases(NOW) == ()
    assert state.leases("default") == []


def test_the_hosts_resolver_is_told_to_workers(network: Network) -> None:
    network.use_resolver(HostResolver(("1.1.1.1",), ("a.example",)))
    described = network.describe("vm1", NOW)
    assert (described.upstreams, described.search_domains) == ((Upstream("1.1.1.1"),), ("a.example",))


def test_what_is_configured_of_dns_goes_before_the_hosts_and_beside_our_own(state: State) -> None:
    dns = DnsSettings.model_validate(
        {
            "search-domains": ["corp.example"],
            "upstreams": {"corp.example": ["10.0.0.1"]},
            "zones": [{"name": "lab.test.", "default-ip": "::ffff:9.9.9.9"}],
        }
    )
    network = Network("default", NetworkSpec(SUBNET, 1500, dns=dns), state, lambda _: True)
    network.use_resolver(HostResolver(("1.1.1.1",), ("a.example",)))
    described = network.describe("vm1", NOW)
    assert described.search_domains == ("corp.example.",)
    assert described.domain_upstreams == {"corp.example.": (Upstream("10.0.0.1"),)}
    assert [zone.name for zone in described.zones] == ["containers.internal.", "docker.internal.", "lab.test."]
    assert described.zones[2].default_ip == "9.9.9.9"


def test_a_guests_host_name_is_told_to_the_workers_of_its_network(network: Network, state: State) -> None:
    network.request_lease(LeaseRequest("vm1", MAC, hostname="Web.example.com", commit=True), NOW)
    fixed = {"gateway": "192.168.127.1", "host": "192.168.127.254"}
    hosts = fixed | {"web": "192.168.127.2"}
    assert network.describe("vm2", NOW).hosts == make(state).describe("vm2", NOW).hosts == hosts
    assert network.describe("vm2", NOW + 3601).hosts == fixed


def test_a_guest_is_found_by_its_name_or_its_name_in_dns(network: Network) -> None:
    network.request_lease(LeaseRequest("vm1", MAC, hostname="web", commit=True), NOW)
    for name in ("web", "WEB.default.internal.", "web.default.internal"):
        assert network.address_of(name, NOW) == network.address_of(name, NOW, "vm1") == "192.168.127.2"
        assert network.address_of(name, NOW, "vm2") == ""
    assert network.address_of("host", NOW) == ""


def test_isolated_vms_know_only_their_own_name(state: State) -> None:
    tenants = make(state, mode="isolated")
    tenants.request_lease(LeaseRequest("vm1", MAC, hostname="web", commit=True), NOW)
    assert tenants.describe("vm1", NOW).hosts["web"] == "192.168.127.2"
    assert "web" not in tenants.describe("vm2", NOW).hosts


def test_static_leases_are_listed_whether_they_are_used_or_not(state: State) -> None:
    static = {SUBNET[9]: MAC, SUBNET[10]: "52:54:00:00:00:02"}
    network = Network("default", NetworkSpec(SUBNET, 1500, static_leases=static), state, lambda _: True)
    assert network.request_lease(lease(), NOW).ip == "192.168.127.9"
    assert sorted((one.ip, one.mac, one.vm_id, one.expires_at, one.static) for one in network.leases(NOW)) == [
        ("192.168.127.10", "52:54:00:00:00:02", "", 0, True),
        ("192.168.127.9", MAC, "vm1", 0, True),
    ]
