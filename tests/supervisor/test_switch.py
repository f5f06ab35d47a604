"""Who is connected with whom: the service with workers that say what they were told (`fake_zygote.py`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from tests.supervisor.service_bed import MAC, OTHER_MAC, Guest, Host, play, running, until
from tests.supervisor.test_service_networks import with_networks

NOBODY = ["", []]
FIRST, SECOND = [MAC, ["192.168.127.2"]], [OTHER_MAC, ["192.168.127.3"]]


async def until_told(guest: Guest, peers: Mapping[str, object]) -> None:
    """Until a VM's worker knows these others, by number, and no more."""

    async def told() -> bool:
        return bool(json.loads(await guest.say("peers")) == peers)

    await until(told)


async def until_named(guest: Guest, *identity: object) -> None:
    """Until a VM's worker knows what its VM may call itself."""

    async def named() -> bool:
        return bool(json.loads(await guest.say("guest"))[:2] == list(identity))

    await until(named)


async def leave(*guests: Guest) -> None:
    for guest in guests:
        await guest.close()


def test_workers_of_a_network_are_connected_and_told_who_is_who() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            first, second = await host.attach(), await host.attach()
            await until_told(first, {"2": NOBODY})
            await until_told(second, {"1": NOBODY})
            await first.say(f"lease {MAC}")
            await second.say(f"lease {OTHER_MAC}")
            await until_told(first, {"2": SECOND})
            await until_told(second, {"1": FIRST})
            await until_named(first, *FIRST)
            assert await first.say("send 2 hello") == "ok"
            assert await second.say("heard 1") == "hello"
            await second.close()
            await until_told(first, {})
            await leave(first)

    play(scenario)


def test_a_new_worker_is_connected_with_all_again() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            first, second = await host.attach(), await host.attach()
            await first.say(f"lease {MAC}")
            await second.say(f"lease {OTHER_MAC}")
            await until_told(first, {"2": SECOND})
            os.kill((await host.vms())[0].worker_pid, signal.SIGKILL)
            await until_told(first, {"2": SECOND})
            await until_named(first, *FIRST)

            async def arrives() -> bool:
                return await second.say("send 1 again") == "ok"

            await until(arrives)
            assert await first.say("heard 2") == "again"
            assert await first.say("send 2 back") == "ok"
            assert await second.say("heard 1") == "back"
            await leave(first, second)

    play(scenario)


def test_vms_of_other_networks_and_isolated_ones_are_not_connected() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory, **with_networks(directory)) as host:
            sockets = ("qemu.sock", "lab.sock", "lab.sock", "tenants.sock", "tenants.sock")
            guests = [await host.attach(socket) for socket in sockets]
            await until_told(guests[1], {"3": NOBODY})
            await until_told(guests[2], {"2": NOBODY})
            for alone in (guests[0], guests[3], guests[4]):
                await until_told(alone, {})
            secured = [json.loads(await guest.say("guest"))[2] for guest in guests]
            assert secured == [True, False, False, None, None]
            await leave(*guests)

    play(scenario)


def test_a_forger_of_mac_and_address_has_neither() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            owner, forger = await host.attach(), await host.attach()
            await owner.say(f"lease {MAC}")
            await forger.say(f"seen {MAC} 192.168.127.2")
            await forger.say(f"seen {OTHER_MAC} 192.168.127.2")
            await until_named(forger, OTHER_MAC, [])
            await until_told(owner, {"2": [OTHER_MAC, []]})
            await leave(owner, forger)

    play(scenario)


def test_a_worker_that_takes_nothing_holds_up_nobody_else() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            stuck, first, second = [await host.attach() for _ in range(3)]
            (pid, *_) = [vm.worker_pid for vm in await host.vms()]
            stuck.writer.write(b"hang\n")
            await until(lambda: _is_stopped(pid))
            await asyncio.wait_for(_talk(host, first, second), 5)
            os.kill(pid, signal.SIGKILL)
            await leave(stuck, first, second)

    play(scenario)


async def _is_stopped(pid: int) -> bool:
    return "State:\tT" in Path(f"/proc/{pid}/status").read_text()


async def _talk(host: Host, first: Guest, second: Guest) -> None:
    """More changes of names than a channel holds, and they all arrive."""
    for number in range(100):
        await first.say(f"seen {MAC} 192.168.127.{100 + number}")
    await second.say(f"lease {OTHER_MAC} 192.168.127.3")
    await until_named(second, *SECOND)
