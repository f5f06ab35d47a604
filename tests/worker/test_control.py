import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio

from proto.captures import AddCapture
from proto.channels import Responder
from proto.errors import RequestFailed
from proto.fdpass import FdChannel
from proto.messages import (
    AddForward,
    CallGuest,
    Empty,
    Failure,
    GetStats,
    GuestSeen,
    Hello,
    Lease,
    LeaseRequest,
    LinkClosed,
    ListVms,
    Network,
    RemoveForward,
    Shutdown,
    UpdateNetwork,
    WorkerStats,
)
from worker import control
from worker.addr import pack_ipv4, widen
from worker.control import Control

NETWORK = Network("default", "10.0.0.0/24", "10.0.0.1", "5a:94:ef:e4:0c:dd", "10.0.0.254", 1500, 3600)


class Datapath:
    """Takes forwards, peers and captures like the engine."""

    def __init__(self) -> None:
        self.joined: list[bool] = []
        self.guest: tuple[bytes, Sequence[bytes]] = (b"", ())
        self.peers: dict[int, tuple[int, bytes, Sequence[bytes]]] = {}
        self.listeners: dict[int, tuple[int, int, bytes, int, bool]] = {}
        self.calls: list[tuple[int, bytes, int, bytes]] = []
        self.captures: list[tuple[int, int, int, int]] = []

    def add_listener(
        self, forward_id: int, fd: int, proto: int, guest_ip: bytes, guest_port: int, *, keep_source: bool
    ) -> None:
        self.listeners[forward_id] = (fd, proto, guest_ip, guest_port, keep_source)

    def call_guest(self, fd: int, guest_ip: bytes, guest_port: int, first_bytes: bytes) -> None:
        self.calls.append((fd, guest_ip, guest_port, first_bytes))

    def add_capture(self, fd: int, interface: int, snaplen: int, buffer_fd: int) -> None:
        self.captures.append((fd, interface, snaplen, buffer_fd))

    def remove_listener(self, forward_id: int) -> None:
        os.close(self.listeners.pop(forward_id)[0])

    def join_switch(self, port_security: bool) -> None:
        self.joined.append(port_security)

    def set_guest(self, mac: bytes, addresses: Sequence[bytes]) -> None:
        self.guest = (mac, addresses)

    def add_peer(self, number: int, fd: int, mac: bytes, addresses: Sequence[bytes]) -> None:
        if fd < 0 and number not in self.peers:
            raise ValueError("no socket")
        self.peers[number] = (fd if fd >= 0 else self.peers[number][0], mac, addresses)

    def remove_peer(self, number: int) -> None:
        os.close(self.peers.pop(number)[0])


class Scene:
    """A worker's control, and the supervisor played by the test."""

    def __init__(self, folder: Path, *, ends_with_supervisor: bool = False) -> None:
        address = f"ipc://{folder}/workers.sock"
        self.context = zmq.asyncio.Context()
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.responder = Responder(self.context, address, self._on_message)
        self.channel, theirs = FdChannel.pair()
        self.engine = Datapath()
        self.counters = {"a": 1}
        self.networks: list[Network] = []
        self.ended = asyncio.Event()
        self.control = Control(
            "vm-1",
            address,
            theirs,
            self.engine,
            lambda: dict(self.counters),
            self._update,
            self.ended.set,
            ends_with_supervisor=ends_with_supervisor,
        )

    def _update(self, network: Network) -> None:
        pack_ipv4(network.gateway_ip)
        self.networks.append(network)

    async def _on_message(self, identity: bytes, message: Any) -> Any:
        assert identity == b"vm-1"
        if isinstance(message, LeaseRequest):
            return Lease("default", "10.0.0.2", message.mac, 0.0)
        self.heard.put_nowait(message)
        return None

    async def hear(self, kind: type) -> Any:
        """The next event of a kind."""
        async with asyncio.timeout(5):
            while not isinstance(message := await self.heard.get(), kind):
                pass
        return message

    async def ask(self, message: Any) -> Any:
        return await self.responder.request(b"vm-1", message)


def play(
    folder: Path,
    scenario: Callable[[Scene], Awaitable[None]],
    last_words: Any = None,
    *,
    ends_with_supervisor: bool = False,
) -> None:
    async def run() -> None:
        scene = Scene(folder, ends_with_supervisor=ends_with_supervisor)
        scene.responder.start()
        scene.control.start()
        try:
            assert await scene.hear(Hello) == Hello("vm-1", os.getpid())
            await scenario(scene)
            await scene.control.close(last_words)
            if last_words is not None:
                assert await scene.hear(type(last_words)) == last_words
        finally:
            await scene.responder.close()
            scene.channel.close()
            scene.context.term()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "STATS_INTERVAL", 0.02)


def test_questions_and_events_reach_the_supervisor(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        lease = await scene.control.ask(LeaseRequest("vm-1", "5a:94:ef:e4:0c:ee"), 5.0)
        assert lease.ip == "10.0.0.2"
        scene.control.tell(GuestSeen("vm-1", "5a:94:ef:e4:0c:ee", ""))
        assert (await scene.hear(GuestSeen)).mac == "5a:94:ef:e4:0c:ee"

    play(tmp_path, scenario, LinkClosed("vm-1", "eof"))


def test_statistics_are_sent_when_they_changed(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.hear(WorkerStats)).counters == {"a": 1}
        scene.counters["a"] = 2
        assert (await scene.hear(WorkerStats)).counters == {"a": 2}
        assert (await scene.ask(GetStats())).counters == {"a": 2}
        assert scene.heard.empty()

    play(tmp_path, scenario)


def test_the_supervisor_updates_the_network_and_ends_the_worker(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.ask(UpdateNetwork(NETWORK)) == Empty()
        assert scene.networks == [NETWORK]
        with pytest.raises(RequestFailed) as refused:
            await scene.ask(ListVms())
        assert refused.value.failure.code == "bad-request"
        assert await scene.ask(Shutdown()) == Empty()
        assert scene.ended.is_set()

    play(tmp_path, scenario)


def test_a_forward_arrives_with_its_socket_and_goes_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        with socket.socket() as listener:
            await scene.channel.asend(AddForward(7, "udp", "10.0.0.2", 80, "gateway"), [listener.fileno()])
            assert (await scene.channel.arecv())[0] == Empty()
            fd, *rest = scene.engine.listeners[7]
            assert os.fstat(fd).st_ino == os.fstat(listener.fileno()).st_ino
            assert rest == [17, widen(pack_ipv4("10.0.0.2")), 80, False]
        assert await scene.ask(RemoveForward(7)) == Empty()
        with pytest.raises(RequestFailed) as unknown:
            await scene.ask(RemoveForward(7))
        assert unknown.value.failure.code == "not-found"

    play(tmp_path, scenario)


def test_a_socket_to_join_to_the_guest_arrives(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await scene.channel.asend(CallGuest("10.0.0.2", 22, b"\xff"), [theirs.fileno()])
            assert (await scene.channel.arecv())[0] == Empty()
            fd, *rest = scene.engine.calls[0]
            assert os.fstat(fd).st_ino == os.fstat(theirs.fileno()).st_ino
            assert rest == [widen(pack_ipv4("10.0.0.2")), 22, b"\xff"]
            os.close(fd)

    play(tmp_path, scenario)


def test_a_connection_to_write_a_capture_to_arrives(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await scene.channel.asend(AddCapture(2, 96), [theirs.fileno(), ours.fileno()])
            assert (await scene.channel.arecv())[0] == Empty()
            fd, *rest, buffer_fd = scene.engine.captures[0]
            assert os.fstat(fd).st_ino == os.fstat(theirs.fileno()).st_ino
            assert os.fstat(buffer_fd).st_ino == os.fstat(ours.fileno()).st_ino
            assert rest == [2, 96]
            os.close(fd)
            os.close(buffer_fd)

    play(tmp_path, scenario)


def test_bad_forwards_are_refused_and_leave_no_descriptor_behind(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        with socket.socket() as listener:
            before = len(os.listdir("/proc/self/fd"))
            for message, fds in (
                (AddForward(7, "tcp", "10.0.0.256", 80), [listener.fileno()]),
                (AddForward(7, "tcp", "10.0.0.2", 80), []),
                (CallGuest("gateway", 80), [listener.fileno()]),
                (AddForward(7, "tcp", "10.0.0.2", 80), [listener.fileno()] * 2),
                (GetStats(), [listener.fileno()]),
            ):
                await scene.channel.asend(message, fds)
                assert isinstance((await scene.channel.arecv())[0], Failure)
            assert len(os.listdir("/proc/self/fd")) == before
        assert not scene.engine.listeners

    play(tmp_path, scenario)


def test_a_fault_over_one_descriptor_does_not_keep_the_next_from_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("as no engine should")

    async def scenario(scene: Scene) -> None:
        with socket.socket() as sock:
            before = len(os.listdir("/proc/self/fd"))
            monkeypatch.setattr(scene.engine, "add_capture", fault)
            await scene.channel.asend(AddCapture(2, 96), [sock.fileno()] * 2)
            answer = (await scene.channel.arecv())[0]
            assert answer == Failure("internal", "AddCapture failed; the log says why")
            assert len(os.listdir("/proc/self/fd")) == before
            await scene.channel.asend(CallGuest("10.0.0.2", 22), [sock.fileno()])
            assert (await scene.channel.arecv())[0] == Empty()
            os.close(scene.engine.calls[0][0])

    play(tmp_path, scenario)


def test_a_supervisor_that_is_gone_ends_only_the_talk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.hear(WorkerStats)
        scene.channel.close()
        async with asyncio.timeout(5):
            while "the supervisor is gone" not in caplog.text:
                await asyncio.sleep(0)
        assert not scene.ended.is_set()

    play(tmp_path, scenario)


def test_a_supervisor_that_is_gone_for_good_ends_the_worker(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.channel.close()
        async with asyncio.timeout(5):
            await scene.ended.wait()

    play(tmp_path, scenario, ends_with_supervisor=True)
