"""The service in this process, with a zygote whose workers the test plays VM to (`fake_zygote.py`)."""

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from proto.errors import RequestFailed
from proto.messages import (
    AddZone,
    Expose,
    ListForwards,
    ListLeases,
    ListZones,
    Stats,
    SumStats,
    Unexpose,
    Zone,
    ZoneRecord,
)
from supervisor import vms
from supervisor.errors import StartError
from tests.supervisor.service_bed import (
    MAC,
    OTHER_MAC,
    Host,
    connect,
    is_alive,
    play,
    reserved_port,
    running,
    until,
)


def test_each_vm_gets_its_own_worker_and_lease() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            first, second = await host.attach(), await host.attach()
            assert await first.say(f"lease {MAC}") == "192.168.127.2"
            assert await second.say(f"lease {OTHER_MAC}") == "192.168.127.3"
            vms = await host.vms()
            assert [(vm.id, vm.mac, vm.ip, vm.network, vm.link) for vm in vms] == [
                ("vm1", MAC, "192.168.127.2", "default", "qemu"),
                ("vm2", OTHER_MAC, "192.168.127.3", "default", "qemu"),
            ]
            assert vms[0].worker_pid != vms[1].worker_pid
            assert vms[0].peer == f"uid={os.getuid()} pid={os.getpid()}"
            assert vms[0].memory > 0
            assert vms[0].open_files > 0
            leases = await host.ask(ListLeases())
            assert {lease.ip: lease.mac for lease in leases.leases} == {
                "192.168.127.2": MAC,
                "192.168.127.3": OTHER_MAC,
            }
            assert leases.gateway_ip == "192.168.127.1"
            for guest in (first, second):
                await guest.close()

    play(scenario)


@pytest.mark.alone
def test_a_killed_worker_is_replaced_on_the_same_link_within_a_second() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            guest = await host.attach()
            assert await guest.say(f"lease {MAC}") == "192.168.127.2"
            forward = await host.expose("192.168.127.2:80")
            (before,) = await host.vms()
            began = time.monotonic()
            os.kill(before.worker_pid, signal.SIGKILL)
            await host.vms()  # a question to a worker that dies over it holds nobody up
            spawn = json.loads(await guest.say("spawn"))
            assert time.monotonic() - began < 1.0
            assert spawn["resync"]
            assert spawn["guest_mac"] == MAC
            (after,) = await host.vms()
            assert (after.id, after.ip, after.restarts) == (before.id, before.ip, 1)
            assert after.worker_pid != before.worker_pid
            assert await connect(forward) == "vm1 1"
            await guest.close()

    play(scenario)


def test_a_vm_that_leaves_is_forgotten_and_its_worker_ends() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            guest = await host.attach()
            await guest.say(f"lease {MAC}")
            (vm,) = await host.vms()
            await guest.close()
            await until(lambda: _none(host))
            assert not is_alive(vm.worker_pid)
            again = await host.attach()
            await again.say(f"lease {OTHER_MAC}")
            third = await host.attach()
            assert await third.say(f"lease {MAC}") == "192.168.127.2"
            for one in (again, third):
                await one.close()

    play(scenario)


async def _none(host: Host) -> bool:
    return not await host.vms()


def test_a_garbled_link_is_closed_and_nothing_else_notices(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            bad, good = await host.attach(), await host.attach()
            await bad.say("close")
            assert await bad.hear() == ""
            await until(lambda: _one(host))
            assert await good.say(f"lease {MAC}") == "192.168.127.2"
            assert "frame length 4294967295" in caplog.text
            for guest in (bad, good):
                await guest.close()

    play(scenario)


async def _is_empty(host: Host) -> bool:
    return not await host.vms()


async def _one(host: Host) -> bool:
    return len(await host.vms()) == 1


def test_a_worker_that_keeps_dying_is_given_time_and_the_service_lives_on() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            guest = await host.attach()
            for restarts in (1, 2):
                assert await guest.say("count 1") == "ok"
                guest.writer.write(b"crash\n")
                await until(lambda restarts=restarts: _has_restarted(host, restarts))  # type: ignore[misc]
            assert await guest.say("count 1") == "ok"
            await guest.close()

    play(scenario)


def test_a_vm_is_refused_while_the_system_has_no_process_for_its_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(directory: Path) -> None:
        full = directory / "full"
        monkeypatch.setenv("MOORAGE_TEST_FULL", str(full))
        async with running(directory) as host:
            before = await host.attach()
            full.touch()
            refused = await asyncio.open_unix_connection(str(directory / "run" / "qemu.sock"))
            assert await asyncio.wait_for(refused[0].read(), 5) == b""
            refused[1].close()
            before.writer.write(b"crash\n")
            await until(lambda: _says(caplog, "the worker of vm1 died (resource temporarily unavailable: "))
            full.unlink()
            after = await host.attach()
            assert await before.say("count 1") == await after.say("count 1") == "ok"
            for guest in (before, after):
                await guest.close()

    play(scenario)
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert line.startswith("refused vm2: no worker for it: resource temporarily unavailable: the ")


async def _says(caplog: pytest.LogCaptureFixture, what: str) -> bool:
    return any(what in record.getMessage() for record in caplog.records)


async def _has_restarted(host: Host, times: int) -> bool:
    (vm,) = await host.vms()
    return vm.restarts == times


def test_the_zygote_is_replaced_when_it_dies_and_workers_live_on() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            first = await host.attach()
            await first.say("count 1")
            (vm,) = await host.vms()
            status = Path(f"/proc/{vm.worker_pid}/status").read_text()
            zygote = int(status.split("PPid:")[1].split()[0])
            os.kill(zygote, signal.SIGKILL)
            second = await host.attach()
            assert await second.say(f"lease {MAC}") == "192.168.127.2"
            assert await first.say("count 2") == "ok"
            for guest in (first, second):
                await guest.close()
            await until(lambda: _none(host))

    play(scenario)


def test_a_forward_waits_for_its_vm_and_follows_the_address() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            forward = await host.expose("192.168.127.2:80")
            early = asyncio.ensure_future(connect(forward))
            first = await host.attach()
            await first.say(f"lease {MAC}")
            assert await early == "vm1 1"
            await first.close()
            await until(lambda: _none(host))
            second = await host.attach()
            await second.say(f"seen {MAC} 192.168.127.2")
            assert await connect(forward) == "vm2 1"
            (listed,) = (await host.ask(ListForwards())).forwards
            assert listed.vm_id == "vm2"
            await second.close()

    play(scenario)


def test_a_vm_cannot_take_the_address_or_the_mac_of_another() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            owner, thief = await host.attach(), await host.attach()
            await owner.say(f"lease {MAC}")
            forward = await host.expose("192.168.127.2:80")
            assert await thief.say(f"lease {MAC}") == "conflict"
            assert await thief.say(f"lease {OTHER_MAC} 192.168.127.2") == "conflict"
            await thief.say(f"seen {OTHER_MAC} 192.168.127.2")
            await thief.say(f"seen {MAC} 192.168.127.2")
            assert await connect(forward) == "vm1 1"
            for guest in (owner, thief):
                await guest.close()

    play(scenario)


def test_forwards_refuse_in_gvproxys_words() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            forward = await host.expose("192.168.127.2:80")
            taken = socket.create_server(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            for request, code, text in [
                (Expose(forward.local, "1.2.3.4:5"), "conflict", f"proxy already running for tcp on {forward.local}"),
                (
                    Expose(f"127.0.0.1:{port}", "1.2.3.4:5"),
                    "in-use",
                    f"listen tcp 127.0.0.1:{port}: bind: address already in use",
                ),
                (Expose(":1", "1.2.3.4:5", "sctp"), "bad-request", "unknown protocol sctp"),
                (Expose(":1", "1.2.3.4"), "bad-request", "address 1.2.3.4: missing port in address"),
                (Expose(":1", "host:5"), "not-found", "lookup host: no such host"),
                (
                    Expose(":1", "1.2.3.4:66000"),
                    "bad-request",
                    'strconv.ParseUint: parsing "66000": value out of range',
                ),
                (Expose(":1", "1.2.3.4:5", network="x"), "not-found", "no network 'x'; there is default"),
                (Unexpose(":1"), "not-found", "proxy not found"),
            ]:
                with pytest.raises(RequestFailed) as refused:
                    await host.ask(request)
                assert (refused.value.failure.code, refused.value.failure.message) == (code, text)
            taken.close()
            await host.ask(Unexpose(forward.local))
            with pytest.raises(ConnectionRefusedError):
                await connect(forward)

    play(scenario)


def test_a_forward_without_a_host_is_open_on_every_address() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            forward = await host.expose("192.168.127.2:80")
            port = forward.local.partition(":")[2]
            await host.ask(Unexpose(forward.local))
            forward = await host.ask(Expose(f":{port}", "192.168.127.2:80"))
            assert forward.bound == f"[::]:{port}"
            same_port = await host.ask(Expose(f":{port}", "192.168.127.2:53", "udp"))
            assert same_port.protocol == "udp"
            listed = (await host.ask(ListForwards())).forwards
            assert [(one.local, one.protocol) for one in listed] == [(f":{port}", "tcp"), (f":{port}", "udp")]

    play(scenario)


def test_leases_forwards_and_zones_survive_a_restart_of_the_service() -> None:
    async def scenario(directory: Path) -> None:
        zone = Zone("test.internal.", (ZoneRecord("1.2.3.4", name="a"),))
        async with running(directory) as host:
            first, second = await host.attach(), await host.attach()
            await first.say(f"lease {MAC}")
            await second.say(f"lease {OTHER_MAC}")
            forward = await host.expose("192.168.127.3:80")
            await host.ask(AddZone(zone))
        async with running(directory) as host:
            guest = await host.attach()
            assert await guest.say(f"lease {OTHER_MAC}") == "192.168.127.3"
            assert await connect(forward) == "vm1 1"
            assert (await host.ask(ListZones())).zones[-1] == zone
            await guest.close()
        for one in (first, second):
            await one.close()

    play(scenario)


def test_a_new_zone_reaches_the_workers() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            guest = await host.attach()
            await guest.say("count 1")
            await host.ask(AddZone(Zone("test.internal.", default_ip="9.9.9.9")))
            zones = json.loads(await guest.say("network"))["zones"]
            assert [zone["name"] for zone in zones] == ["containers.internal.", "docker.internal.", "test.internal."]
            with pytest.raises(RequestFailed, match="invalid IP address: nonsense"):
                await host.ask(AddZone(Zone("x.", (ZoneRecord("nonsense"),))))
            await guest.close()

    play(scenario)


def test_stats_are_fresh_and_count_workers_that_ended_but_not_their_flows() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            first, second = await host.attach(), await host.attach()
            await first.say("count 5")
            await second.say("count 7")
            assert await host.ask(SumStats()) == Stats({"fake": 12, "tcp.flows": 2}, 2)
            await first.close()
            await until(lambda: _one(host))
            assert await host.ask(SumStats()) == Stats({"fake": 12, "tcp.flows": 1}, 1)
            await second.close()

    play(scenario)


def test_the_last_counters_of_a_worker_count_also_when_its_channel_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vms, "STATUS_PATIENCE", 10.0)

    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            guest = await host.attach()
            assert await guest.say("hangup") == "ok"

            async def has_ended() -> bool:
                return not any(vm.worker_pid for vm in await host.vms())

            await until(has_ended)
            await guest.say("farewell 5")
            await guest.close()
            await until(lambda: _is_empty(host))
            assert (await host.ask(SumStats())).counters["fake"] == 5

    play(scenario)


@pytest.mark.alone
def test_a_worker_that_hangs_delays_a_question_but_does_not_stop_it_and_ends_with_the_service() -> None:
    async def scenario(directory: Path) -> None:
        async with running(directory) as host:
            guest = await host.attach()
            await guest.say("count 5")
            await host.vms()
            (vm,) = await host.vms()
            guest.writer.write(b"hang\n")
            began = time.monotonic()
            assert (await host.ask(SumStats())).counters["fake"] == 5
            assert time.monotonic() - began < 2.0
        assert not is_alive(vm.worker_pid)
        await guest.close()

    play(scenario)


def test_configured_forwards_are_there_at_every_start_and_no_state() -> None:
    async def scenario(directory: Path) -> None:
        with reserved_port() as port:
            local = f"127.0.0.1:{port}"
            configured = {"forwards": [{"local": local, "remote": "192.168.127.2:22"}]}
            for _ in range(2):
                async with running(directory, **configured) as host:
                    assert [forward.local for forward in await host.forwards()] == [local]
        async with running(directory) as host:
            assert not await host.forwards()

    play(scenario)


def test_a_configured_forward_that_cannot_be_is_why_it_does_not_start() -> None:
    async def scenario(directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as holder:
            local = f"127.0.0.1:{holder.getsockname()[1]}"
            with pytest.raises(StartError) as refused:
                async with running(directory, forwards=[{"local": local, "remote": "192.168.127.2:22"}]):
                    pass
        reason = f"listen tcp {local}: bind: address already in use"
        assert str(refused.value) == f"cannot add network services: {reason}"

    play(scenario)
