"""Notifications as another program gets them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from proto.events import GuestKnown, VmAttached, VmDetached
from supervisor.endpoints import UnixEndpoint
from supervisor.notifications import MAX_MACS_PER_VM, MAX_WAITING, Notifications

MAC, OTHER = "5a:94:ef:e4:0c:ee", "5a:94:ef:e4:0c:ef"


class Receiver:
    """The other program: everything that came, by connection."""

    def __init__(self) -> None:
        self.connections: list[bytes] = []
        self.busy = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.busy.set()
        await self.go_on.wait()
        self.connections.append(await reader.read())
        writer.close()

    async def heard(self, count: int) -> list[dict[str, str]]:
        async with asyncio.timeout(5):
            while len(self.connections) < count:
                await asyncio.sleep(0.01)
        return [json.loads(sent) for sent in self.connections]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_each_is_a_connection_with_one_line_of_json(tmp_path: Path) -> None:
    async def scenario() -> None:
        receiver = Receiver()
        async with await asyncio.start_unix_server(receiver.serve, tmp_path / "s"):
            notifications = Notifications(UnixEndpoint(str(tmp_path / "s")))
            notifications.ready()
            notifications.hypervisor_error()
            await notifications.close(5)
            await receiver.heard(2)
        assert receiver.connections == [
            b'{"notification_type":"ready"}\n',
            b'{"notification_type":"hypervisor_error"}\n',
        ]

    run(scenario())


def test_a_mac_is_told_once_and_when_its_vm_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        receiver = Receiver()
        async with await asyncio.start_unix_server(receiver.serve, tmp_path / "s"):
            notifications = Notifications(UnixEndpoint(str(tmp_path / "s")))
            for event in (
                VmAttached("vm1", "default"),
                GuestKnown("vm1", MAC),
                GuestKnown("vm1", OTHER),
                GuestKnown("vm1", MAC),
                GuestKnown("vm2", MAC),
                VmDetached("vm1", "eof"),
                VmDetached("vm2", "eof"),
                VmDetached("vm3", "said nothing"),
            ):
                notifications.on_event(event)
            await notifications.close(5)
            heard = await receiver.heard(4)
        kinds = ["connection_established"] * 2 + ["connection_closed"] * 2
        assert heard == [
            {"notification_type": kind, "mac_address": mac}
            for kind, mac in zip(kinds, (MAC, OTHER, MAC, OTHER), strict=True)
        ]

    run(scenario())


def test_a_hundred_wait_and_more_are_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        receiver = Receiver()
        async with await asyncio.start_unix_server(receiver.serve, tmp_path / "s"):
            receiver.go_on.clear()
            notifications = Notifications(UnixEndpoint(str(tmp_path / "s")))
            for number in range(MAX_WAITING):
                notifications.on_event(GuestKnown("vm1", f"02:00:00:00:00:{number:02x}"))
            assert not caplog.records
            notifications.ready()
            assert [record.getMessage() for record in caplog.records] == ["unable to send notification"]
            receiver.go_on.set()
            await notifications.close(10)
            assert len(await receiver.heard(MAX_WAITING)) == MAX_WAITING

    run(scenario())


def test_a_guest_that_changes_its_mac_for_ever_is_not_followed_for_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        notifications = Notifications(UnixEndpoint(str(tmp_path / "nobody")))
        for number in range(MAX_MACS_PER_VM + 10):
            notifications.on_event(GuestKnown("vm1", f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"))
            await asyncio.sleep(0)
        assert len(notifications._macs["vm1"]) == MAX_MACS_PER_VM
        await notifications.close(5)

    run(scenario())


def test_one_that_cannot_be_sent_is_logged_and_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        notifications = Notifications(UnixEndpoint(str(tmp_path / "s")))
        notifications.ready()
        await notifications._waiting.join()
        receiver = Receiver()
        async with await asyncio.start_unix_server(receiver.serve, tmp_path / "s"):
            notifications.hypervisor_error()
            await notifications.close(5)
            assert await receiver.heard(1) == [{"notification_type": "hypervisor_error"}]

    run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot send notification to {tmp_path}/s: No such file or directory"
    ]
