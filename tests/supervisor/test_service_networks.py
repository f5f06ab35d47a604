"""Several networks in one service: who is on which, and whose address a forward means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proto.errors import RequestFailed
from proto.messages import ListLeases, ListNetworks
from tests.supervisor.service_bed import MAC, OTHER_MAC, Host, connect, play, running, until


def with_networks(directory: Path) -> dict[str, Any]:
    """Settings with a second shared network and an isolated one, a listener on each."""
    return {
        "listen": [
            f"qemu=unix://{directory}/run/{socket},network={network}"
            for socket, network in (("qemu.sock", "default"), ("lab.sock", "lab"), ("tenants.sock", "tenants"))
        ],
        "networks": {"lab": {"subnet": "10.1.0.0/24", "port-security": False}, "tenants": {"mode": "isolated"}},
    }


def test_vms_are_on_the_network_of_their_listener() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory, **with_networks(directory)) as host:
            first, second = await host.attach(), await host.attach("lab.sock")
            assert await first.say(f"lease {MAC}") == "192.168.127.2"
            assert await second.say(f"lease {MAC}") == "10.1.0.2"
            assert [vm.network for vm in await host.vms()] == ["default", "lab"]
            known = {network.name: network for network in (await host.ask(ListNetworks())).networks}
            assert list(known) == ["default", "lab", "tenants"]
            assert [network.macs for network in known.values()] == [{MAC: "vm1"}, {MAC: "vm2"}, {}]
            assert [network.port_security for network in known.values()] == [True, False, True]
            for guest in (first, second):
                await guest.close()

    play(scenario)


def test_isolated_vms_have_the_same_address_and_a_forward_names_its_vm() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory, **with_networks(directory)) as host:
            guests = [await host.attach("tenants.sock") for _ in range(2)]
            for guest, mac in zip(guests, (MAC, OTHER_MAC), strict=True):
                assert await guest.say(f"lease {mac}") == "192.168.127.2"
            with pytest.raises(RequestFailed, match="network tenants is isolated"):
                await host.expose("192.168.127.2:80", network="tenants")
            forwards = [await host.expose("192.168.127.2:80", network="tenants", vm=vm) for vm in ("vm2", MAC)]
            assert [await connect(forward) for forward in forwards] == ["vm2 1", "vm1 2"]
            assert len((await host.ask(ListLeases("tenants"))).leases) == 2
            for guest in guests:
                await guest.close()

    play(scenario)


def test_a_forward_to_a_mac_survives_and_finds_the_vm_again() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory, **with_networks(directory)) as host:
            forward = await host.expose("192.168.127.2:80", network="tenants", vm=OTHER_MAC)
            await host.expose("192.168.127.2:81", network="tenants", vm="vm7")
        async with running(directory, **with_networks(directory)) as host:
            assert [one.vm for one in await host.forwards()] == [OTHER_MAC]
            guests = [await host.attach("tenants.sock") for _ in range(2)]
            for guest, mac in zip(guests, (MAC, OTHER_MAC), strict=True):
                await guest.say(f"lease {mac}")
            assert await connect(forward) == "vm2 1"
            for guest in guests:
                await guest.close()

    play(scenario)


def test_a_mac_that_another_vm_uses_gets_neither_lease_nor_name(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            owner, forger = await host.attach(), await host.attach()
            await owner.say(f"seen {MAC} 192.168.127.50")
            await until(lambda: _has_mac(host, 0, MAC))
            await forger.say(f"seen {MAC} 192.168.127.50")
            assert await forger.say(f"lease {MAC}") == "conflict"
            assert [vm.mac for vm in await host.vms()] == [MAC, ""]
            assert caplog.text.count(f"vm2 uses MAC {MAC}, which is not its own") == 1
            for guest in (owner, forger):
                await guest.close()

    play(scenario)


async def _has_mac(host: Host, which: int, mac: str) -> bool:
    return (await host.vms())[which].mac == mac
