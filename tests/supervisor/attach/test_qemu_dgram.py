"""QEMU's datagram listeners: one VM at a time, and the next when it is gone."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.attach import datagram
from supervisor.attach.datagram import DatagramLink
from supervisor.attach.qemu_dgram import QemuDatagramListener
from supervisor.endpoints import UnixEndpoint
from tests.supervisor.attach.listening import listening


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram, "WATCH_INTERVAL", 0.02)


@contextlib.contextmanager
def qemu(local: Path) -> Iterator[socket.socket]:
    """As QEMU does it: bound, not connected, and what was there before is unlinked."""
    local.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(local))
        sock.settimeout(10)
        yield sock


def test_the_first_frame_names_the_vm_and_is_its_own(tmp_path: Path) -> None:
    path = f"{tmp_path}/q"

    async def scenario() -> None:
        async with listening(QemuDatagramListener(UnixEndpoint(path))) as bed:
            with qemu(tmp_path / "vm") as vm, qemu(tmp_path / "other") as other:
                vm.sendto(b"first", path)
                attachment = await bed.attachment()
                assert (attachment.kind, attachment.framing) == ("qemu-dgram", "messages")
                assert attachment.first_bytes == b"\0\0\0\5first"
                assert isinstance(attachment.link, DatagramLink)
                vm.sendto(b"second", path)
                assert attachment.link.sock.recv(99) == b"second"
                attachment.link.sock.send(b"answer")
                assert vm.recv(99) == b"answer"
                with pytest.raises(PermissionError):
                    other.sendto(b"mine", path)
                assert not attachment.link.is_closed()
            attachment.link.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["vm", "another"])
def test_a_vm_that_is_gone_makes_room_for_the_next(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/q"

    async def scenario() -> None:
        async with listening(QemuDatagramListener(UnixEndpoint(path))) as bed:
            with qemu(tmp_path / "vm") as vm:
                vm.sendto(b"frame", path)
                first = await bed.attachment()
            with qemu(tmp_path / name) as vm:
                async with asyncio.timeout(10):
                    while not first.link.is_closed():
                        await asyncio.sleep(0.01)
                first.link.close()
                vm.sendto(b"frame", path)
                second = await bed.attachment()
                assert not second.link.is_closed()
            second.link.close()

    asyncio.run(scenario())


def test_a_frame_that_another_sent_first_is_not_the_vms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = f"{tmp_path}/q"

    async def scenario() -> None:
        listener = QemuDatagramListener(UnixEndpoint(path))
        with qemu(tmp_path / "vm") as vm, qemu(tmp_path / "other") as other:
            vm.sendto(b"first", path)
            other.sendto(b"mine", path)
            vm.sendto(b"second", path)
            async with listening(listener) as bed:
                attachment = await bed.attachment()
                assert attachment.first_bytes == b"\0\0\0\5first\0\0\0\6second"
                attachment.link.close()

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        f"lost datagrams to unix://{path} of other senders: 1"
    ]


def test_a_vm_that_cannot_be_answered_is_dropped_and_the_next_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"{tmp_path}/q"

    async def scenario() -> None:
        listener = QemuDatagramListener(UnixEndpoint(path))
        with qemu(tmp_path / "gone") as gone:
            gone.sendto(b"frame", path)
        async with listening(listener) as bed:
            async with asyncio.timeout(10):
                while not caplog.records:
                    await asyncio.sleep(0.01)
            with qemu(tmp_path / "vm") as vm:
                vm.sendto(b"frame", path)
                (await bed.attachment()).link.close()

    asyncio.run(scenario())
    assert "cannot answer" in caplog.text
