from dataclasses import replace

import pytest

from proto.messages import Network
from worker.addr import pack_ipv4, widen
from worker.policy import TCP, UDP, Policy
from worker.upcalls import Action

NETWORK = Network(
    name="default",
    subnet="192.168.127.0/24",
    gateway_ip="192.168.127.1",
    gateway_mac="5a:94:ef:e4:0c:dd",
    host_ip="192.168.127.254",
    mtu=1500,
    lease_time=3600,
    nat={"192.168.127.254": "127.0.0.1"},
)
POLICY = Policy.of(NETWORK)


def wide(text: str) -> bytes:
    return widen(pack_ipv4(text))


@pytest.mark.parametrize(("proto", "port"), [(UDP, 53), (UDP, 67), (UDP, 123), (TCP, 53), (1, 0)])
def test_the_gateways_own_services_are_local(proto: int, port: int) -> None:
    assert POLICY.decide(proto, wide("192.168.127.1"), port).action is Action.LOCAL


@pytest.mark.parametrize(("proto", "port"), [(TCP, 80), (TCP, 67), (UDP, 80), (TCP, 123), (47, 0)])
def test_everything_else_of_the_gateway_is_refused(proto: int, port: int) -> None:
    assert POLICY.decide(proto, wide("192.168.127.1"), port).action is Action.REFUSE


def test_the_host_alias_stands_for_the_hosts_loopback() -> None:
    verdict = POLICY.decide(TCP, wide("192.168.127.254"), 8080)
    assert (verdict.action, verdict.host_addr, verdict.host_port) == (Action.CARRY, wide("127.0.0.1"), 8080)


def test_without_nat_the_host_alias_is_an_unused_address() -> None:
    policy = Policy.of(replace(NETWORK, nat={}))
    assert policy.decide(TCP, wide("192.168.127.254"), 8080).action is Action.UNREACHABLE


@pytest.mark.parametrize("address", ["192.168.127.2", "192.168.127.0", "192.168.127.253"])
def test_the_rest_of_the_subnet_is_never_dialled_on_the_host(address: str) -> None:
    assert POLICY.decide(TCP, wide(address), 80).action is Action.UNREACHABLE


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3", "240.0.0.1", "255.255.255.255", "224.0.0.251",
     "239.255.255.250", "192.168.127.255"],
)  # fmt: skip
def test_addresses_that_are_no_destination_are_dropped(address: str) -> None:
    assert POLICY.decide(UDP, wide(address), 80).action is Action.DROP


def test_cloud_metadata_is_refused() -> None:
    assert POLICY.decide(TCP, wide("169.254.169.254"), 80).action is Action.REFUSE


def test_everything_else_is_carried_to_itself() -> None:
    verdict = POLICY.decide(TCP, wide("93.184.216.34"), 443)
    assert (verdict.action, verdict.host_addr, verdict.host_port) == (Action.CARRY, wide("93.184.216.34"), 443)


def test_addresses_of_another_family_are_dropped() -> None:
    assert POLICY.decide(TCP, bytes(15) + b"\1", 80).action is Action.DROP


def test_link_local_addresses_are_reached_only_where_the_network_may() -> None:
    metadata = wide("169.254.169.254")
    assert POLICY.decide(TCP, metadata, 80).action is Action.REFUSE
    allowed = Policy.of(replace(NETWORK, link_local=True))
    assert allowed.decide(TCP, metadata, 80).action is Action.CARRY


def test_the_api_is_local_only_where_the_network_has_it() -> None:
    gateway = wide("192.168.127.1")
    assert POLICY.decide(TCP, gateway, 80).action is Action.REFUSE
    served = Policy.of(replace(NETWORK, guest_api=True))
    assert served.decide(TCP, gateway, 80).action is Action.LOCAL
    assert served.decide(UDP, gateway, 80).action is Action.REFUSE
