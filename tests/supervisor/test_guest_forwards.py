"""What a guest may ask of the forwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proto.errors import RequestFailed
from proto.guest_requests import GuestExpose, GuestUnexpose
from proto.messages import Expose, Forward, Unexpose
from supervisor import guest_forwards
from supervisor.forwards.table import Forwards as Table
from supervisor.guest_forwards import GuestForwards
from supervisor.vms import Vm

MAC = "5a:94:ef:e4:0c:ee"
IP = "192.168.127.2"


class FakeTable:
    """A table that opens nothing."""

    def __init__(self, *forwards: Forward) -> None:
        self.forwards = list(forwards)

    def list(self) -> tuple[Forward, ...]:
        return tuple(self.forwards)

    async def expose(self, asked: Expose) -> None:
        self.forwards.append(Forward(asked.local, asked.remote, "tcp", asked.network, asked.vm))

    async def unexpose(self, asked: Unexpose, mine: Callable[[Forward], bool]) -> None:
        ended = [forward for forward in self.forwards if forward.local == asked.local and mine(forward)]
        if not ended:
            raise RequestFailed.because("not-found", "proxy not found")
        self.forwards.remove(ended[0])


def vm(*ports: range, mac: str = MAC) -> Vm:
    network = SimpleNamespace(name="default", spec=SimpleNamespace(guest_api=ports))
    return cast("Vm", SimpleNamespace(id="vm1", mac=mac, network=network))


def guest_forwards_of(*forwards: Forward) -> tuple[GuestForwards, FakeTable]:
    table = FakeTable(*forwards)
    return GuestForwards(cast("Table", cast("Any", table))), table


def refusal(guest: Vm, local: str, protocol: str = "tcp", *forwards: Forward) -> str:
    api, table = guest_forwards_of(*forwards)
    with pytest.raises(RequestFailed) as refused:
        asyncio.run(api.expose(guest, GuestExpose("vm1", local, f"{IP}:1", protocol)))
    assert table.forwards == list(forwards)
    return refused.value.failure.message


def test_a_forward_that_a_guest_makes_stays_its_own() -> None:
    api, table = guest_forwards_of()
    asyncio.run(api.expose(vm(range(1 << 16)), GuestExpose("vm1", ":8080", f"{IP}:80", "tcp")))
    assert table.forwards == [Forward(":8080", f"{IP}:80", "tcp", "default", MAC)]


def test_only_the_ports_that_the_network_lets_guests_have() -> None:
    guest = vm(range(8000, 9000), range(443, 444))
    api, table = guest_forwards_of()
    for local in (":8000", "127.0.0.1:8999", "[::]:443"):
        asyncio.run(api.expose(guest, GuestExpose("vm1", local, f"{IP}:80", "tcp")))
    assert len(table.forwards) == 3
    for local, port in ((":7999", 7999), (":9000", 9000), (":80", 80), (":0", 0)):
        assert refusal(guest, local) == f"a guest may not listen on port {port} of this host"
    assert "missing port" in refusal(guest, "8000")


@pytest.mark.parametrize("protocol", ["unix", "npipe", "sctp", "TCP"])
def test_never_a_file_of_the_host(protocol: str) -> None:
    assert refusal(vm(range(1 << 16)), "/etc/passwd", protocol) == f"a guest may forward tcp and udp, not {protocol}"


def test_where_guests_may_not_ask_or_are_not_known_nothing_is_answered() -> None:
    for guest in (vm(), vm(range(1 << 16), mac="")):
        assert refusal(guest, ":80") == "guests of network default may not forward ports"
        with pytest.raises(RequestFailed):
            guest_forwards_of()[0].list(guest)


def test_a_guest_has_not_all_of_the_hosts_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_forwards, "MAX_FORWARDS", 2)
    own = [Forward(f":{port}", f"{IP}:1", vm=MAC) for port in (1, 2)]
    assert refusal(vm(range(1 << 16)), ":3", "tcp", *own) == "a guest may have 2 forwards"


def test_a_guest_sees_what_leads_to_it_but_no_key_file_and_ends_what_it_made() -> None:
    own = Forward(":1", f"{IP}:1", vm=MAC)
    led_here = Forward(":2", f"{IP}:2", vm_id="vm1")
    ssh = Forward("/run/s", f"ssh-tunnel://core@{IP}/s?key=/secret", "unix", vm_id="vm1")
    other = Forward(":3", "192.168.127.3:3", vm_id="vm2")
    same_mac_elsewhere = Forward(":4", f"{IP}:4", network="lab", vm=MAC)
    api, table = guest_forwards_of(own, led_here, ssh, other, same_mac_elsewhere)
    guest = vm(range(1 << 16))
    assert api.list(guest).forwards == (own, led_here)
    for forward in (led_here, ssh, other, same_mac_elsewhere):
        with pytest.raises(RequestFailed, match="proxy not found"):
            asyncio.run(api.unexpose(guest, GuestUnexpose("vm1", forward.local, forward.protocol)))
    asyncio.run(api.unexpose(guest, GuestUnexpose("vm1", ":1", "tcp")))
    assert own not in table.forwards
