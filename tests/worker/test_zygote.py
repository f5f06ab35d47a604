"""The zygote as the supervisor runs it, its workers on the real engine, with the test as supervisor and guest."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dpkt
import pytest
import zmq.asyncio
from dpkt import dhcp

from proto.channels import Responder
from proto.fdpass import FdChannel
from proto.messages import (
    Empty,
    Exited,
    Failure,
    GetStats,
    Hello,
    Lease,
    LeaseRequest,
    LinkClosed,
    Network,
    NotSpawned,
    Shutdown,
    Spawn,
    Spawned,
    ZygoteReady,
)
from worker.zygote import Zygote

pytestmark = pytest.mark.system

GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xee"
NETWORK = Network(
    "default", "192.168.127.0/24", "192.168.127.1", "5a:94:ef:e4:0c:dd", "192.168.127.254", 1500, 3600,
    nat={"192.168.127.254": "127.0.0.1"},
)  # fmt: skip


def discover() -> bytes:
    """A frame as it lies on a QEMU link."""
    message = bytes(dhcp.DHCP(chaddr=GUEST_MAC, opts=((53, b"\1"),)))
    udp = dpkt.udp.UDP(sport=68, dport=67, data=message)
    udp.ulen = len(udp)
    ip = dpkt.ip.IP(src=bytes(4), dst=b"\xff" * 4, p=17, ttl=64, data=udp)
    ip.len = len(ip)
    frame = b"\xff" * 6 + GUEST_MAC + b"\x08\0" + bytes(ip)
    return len(frame).to_bytes(4, "big") + frame


class Scene:
    """A zygote and its supervisor."""

    def __init__(self, folder: Path) -> None:
        self.address = f"ipc://{folder}/workers.sock"
        self.context = zmq.asyncio.Context()
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.responder = Responder(self.context, self.address, self._on_message)
        self.channel, theirs = FdChannel.pair()
        command = [sys.executable, "-m", "worker.zygote", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
        theirs.close()

    async def _on_message(self, _identity: bytes, message: Any) -> Any:
        if isinstance(message, LeaseRequest):
            return Lease("default", "192.168.127.2", message.mac, 0.0)
        self.heard.put_nowait(message)
        return None

    async def hear(self, kind: type) -> Any:
        async with asyncio.timeout(10):
            while not isinstance(message := await self.heard.get(), kind):
                pass
        return message

    async def from_zygote(self) -> Any:
        async with asyncio.timeout(10):
            while isinstance(message := (await self.channel.arecv())[0], ZygoteReady):
                pass
            return message

    async def spawn(self, vm_id: str) -> tuple[int, socket.socket, FdChannel]:
        """A worker that has said hello: its pid, the guest's end of its link, the supervisor's of its channel."""
        link, guest = socket.socketpair()
        channel, theirs = FdChannel.pair()
        await self.channel.asend(Spawn(vm_id, "stream32", NETWORK, self.address), [link.fileno(), theirs.fileno()])
        link.close()
        theirs.close()
        guest.setblocking(False)
        spawned = await self.from_zygote()
        assert isinstance(spawned, Spawned)
        assert await self.hear(Hello) == Hello(vm_id, spawned.pid)
        return spawned.pid, guest, channel

    def log(self) -> str:
        """What was written to standard error; waits for the zygote and its workers to end."""
        return self.process.communicate(timeout=10)[1]


def play(folder: Path, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene(folder)
        scene.responder.start()
        try:
            await scenario(scene)
        finally:
            scene.channel.close()
            assert await asyncio.to_thread(scene.process.wait, 10) == 0
            await scene.responder.close()
            scene.context.term()
            assert scene.process.stderr is not None
            scene.process.stderr.close()

    asyncio.run(run())


def test_a_worker_serves_its_guest_until_the_link_closes(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        pid, guest, channel = await scene.spawn("vm-1")
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(guest, discover())
        async with asyncio.timeout(10):
            offer = await loop.sock_recv(guest, 4096)
        assert dhcp.DHCP(offer[4 + 14 + 20 + 8 :]).yiaddr.to_bytes(4, "big") == bytes([192, 168, 127, 2])
        counters = (await scene.responder.request(b"vm-1", GetStats())).counters
        assert (counters["dhcp.discover"], counters["dhcp.offer"]) == (1, 1)
        guest.close()
        assert await scene.hear(LinkClosed) == LinkClosed("vm-1", "eof")
        assert await scene.from_zygote() == Exited(pid, 0)
        channel.close()

    play(tmp_path, scenario)


def test_a_worker_ends_when_told_to(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        (first, guest, channel), (second, other_guest, other_channel) = [
            await scene.spawn("vm-1"), await scene.spawn("vm-2")
        ]  # fmt: skip
        assert await scene.responder.request(b"vm-1", Shutdown()) == Empty()
        assert await scene.from_zygote() == Exited(first, 0)
        os.kill(second, signal.SIGTERM)
        assert await scene.from_zygote() == Exited(second, 0)
        for end in (guest, channel, other_guest, other_channel):
            end.close()

    play(tmp_path, scenario)


def test_a_killed_worker_is_reported_and_its_channel_ends(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        pid, guest, channel = await scene.spawn("vm-1")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EOFError):
            await channel.arecv()
        assert await scene.from_zygote() == Exited(pid, -signal.SIGKILL)
        guest.close()
        channel.close()

    play(tmp_path, scenario)


def test_workers_share_no_descriptors_with_each_other(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        workers = [await scene.spawn(f"vm-{number}") for number in range(3)]
        standard = {os.stat(f"/proc/{workers[0][0]}/fd/{fd}").st_ino for fd in range(3)}
        inodes = [
            {os.stat(path).st_ino for path in Path(f"/proc/{pid}/fd").iterdir() if "socket" in os.readlink(path)}
            for pid, _, _ in workers
        ]
        assert not inodes[0] & inodes[1] - standard
        assert not inodes[1] & inodes[2] - standard
        for _, guest, channel in workers:
            guest.close()
            channel.close()

    play(tmp_path, scenario)


def test_who_asks_for_a_worker_is_told_when_there_is_no_process_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> int:
        raise OSError(errno.EAGAIN, "no room")

    ours, theirs = FdChannel.pair()
    zygote = Zygote.__new__(Zygote)  # without its signal handlers
    zygote._channel = theirs
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", no_room)
        zygote._spawn(Spawn("vm-1", "stream32", NETWORK, ""), [], -1)
    assert ours.recv() == (NotSpawned("vm-1", errno.EAGAIN), [])
    ours.close()
    theirs.close()


def test_messages_that_are_no_spawn_are_refused_and_the_zygote_goes_on(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        raw = socket.socket(fileno=os.dup(scene.channel.fileno()))
        raw.send(b"no message")
        raw.close()
        await scene.channel.asend(GetStats())
        assert isinstance(await scene.from_zygote(), Failure)
        spawn = Spawn("vm-1", "stream32", NETWORK, scene.address)
        await scene.channel.asend(spawn, [0])
        assert isinstance(await scene.from_zygote(), Failure)
        pid, guest, channel = await scene.spawn("vm-1")
        guest.close()
        assert await scene.from_zygote() == Exited(pid, 0)
        channel.close()
        scene.channel.close()
        assert "refused a message" in await asyncio.to_thread(scene.log)

    play(tmp_path, scenario)


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        link, guest = socket.socketpair()
        channel, theirs = FdChannel.pair()
        broken = Network("default", "nonsense", "192.168.127.1", "5a:94:ef:e4:0c:dd", "192.168.127.254", 1500, 3600)
        await scene.channel.asend(Spawn("vm-1", "stream32", broken, scene.address), [link.fileno(), theirs.fileno()])
        spawned = await scene.from_zygote()
        assert await scene.from_zygote() == Exited(spawned.pid, 70)
        for end in (link, guest, theirs, channel):
            end.close()
        scene.channel.close()
        assert "nonsense" in await asyncio.to_thread(scene.log)

    play(tmp_path, scenario)


def test_workers_outlive_the_zygote(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        _, guest, channel = await scene.spawn("vm-1")
        scene.channel.close()
        assert await asyncio.to_thread(scene.process.wait, 10) == 0
        assert (await scene.responder.request(b"vm-1", GetStats())).vm_id == "vm-1"
        guest.close()
        assert await scene.hear(LinkClosed) == LinkClosed("vm-1", "eof")
        with pytest.raises(EOFError):
            await channel.arecv()
        channel.close()

    play(tmp_path, scenario)
