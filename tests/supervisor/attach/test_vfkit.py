"""vfkit's listeners: many clients on one path, each with frames of its own, however they come."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from proto import codec
from proto.framing import FrameReader
from proto.messages import Failure
from supervisor.attach import datagram
from supervisor.attach.datagram import DatagramLink
from supervisor.attach.kinds import parse_listener
from supervisor.attach.link import SocketLink
from supervisor.attach.listener import Attachment
from supervisor.attach.options import Options
from supervisor.attach.relay import Relay, RelayedVm
from supervisor.attach.unix_peers import references
from supervisor.attach.vfkit import VfkitListener
from supervisor.endpoints import UnixEndpoint
from supervisor.errors import StartError
from tests.guests.vfkit import MAGIC, vfkit_socket
from tests.supervisor.attach.listening import PATIENCE, Bed, listening


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram, "WATCH_INTERVAL", 0.02)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v"


class Clients:
    """Sockets as vfkit has them, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = contextlib.ExitStack()

    def connect(self, name: str) -> socket.socket:
        client = self._stack.enter_context(vfkit_socket(self.path, self.address(name)))
        client.settimeout(PATIENCE)
        return client

    def unconnected(self, name: str) -> socket.socket:
        client = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        client.bind(str(self.address(name)))
        client.settimeout(PATIENCE)
        return client

    def address(self, name: str) -> Path:
        return self.path.with_name(name)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def clients(path: Path) -> Iterator[Clients]:
    with contextlib.closing(Clients(path)) as clients:
        yield clients


@contextlib.asynccontextmanager
async def bed_at(path: Path, options: Options = Options()) -> AsyncIterator[Bed]:  # noqa: B008
    async with listening(VfkitListener(UnixEndpoint(str(path), "unixgram"), options)) as bed:
        yield bed


class Vm:
    """The worker's end."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment, link = attachment, attachment.link
        assert isinstance(link, SocketLink)
        self.sock = link.sock
        self.is_direct = isinstance(link, DatagramLink)
        reader, first = FrameReader(), attachment.first_bytes
        reader.space()[: len(first)] = first
        self._first = [bytes(frame) for frame in reader.received(len(first))]

    async def frame(self) -> bytes:
        """The next of the client."""
        if self._first:
            return self._first.pop(0)
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self.sock, 65_536)


async def attached(bed: Bed, count: int, clients: Clients) -> dict[str, Vm]:
    """The next VMs, by the names of their clients."""
    found = [await bed.attachment() for _ in range(count)]
    return {Path(attachment.peer.split()[-1]).name: Vm(attachment) for attachment in found}


async def hear(client: socket.socket) -> bytes:
    return await asyncio.to_thread(client.recv, 65_536)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("scheme", ["unixgram", "unix"])
@pytest.mark.parametrize("beginning", [[MAGIC], []])
def test_a_client_is_a_vm_and_not_a_frame_of_it_is_lost(
    path: Path, clients: Clients, scheme: str, beginning: list[bytes]
) -> None:
    async def scenario() -> None:
        listener = parse_listener(f"vfkit={scheme}://{path}").open()
        client = clients.connect("a")
        for message in (*beginning, b"first", b"second"):
            client.send(message)
        async with listening(listener) as bed:
            vm = (await attached(bed, 1, clients))["a"]
            client.send(b"third")
            assert (vm.attachment.kind, vm.attachment.framing) == ("vfkit", "messages")
            assert vm.attachment.listener == f"{scheme}://{path}"
            assert vm.attachment.peer == f"uid={os.getuid()} pid={os.getpid()} {clients.address('a')}"
            assert [await vm.frame() for _ in range(3)] == [b"first", b"second", b"third"]
            assert vm.is_direct
            vm.sock.send(b"answer")
            assert await hear(client) == b"answer"
            vm.attachment.link.close()
        assert not path.exists()

    asyncio.run(scenario())


def test_a_vms_socket_has_buffers_as_large_as_gvproxys(path: Path, clients: Clients) -> None:
    """SO_SNDBUF 1 MiB, SO_RCVBUF 4 MiB, or what the system grants of them"""

    async def scenario() -> None:
        listener = VfkitListener(UnixEndpoint(str(path)))
        clients.connect("a").send(MAGIC)
        async with listening(listener) as bed:
            vm = (await attached(bed, 1, clients))["a"]
            for option, size in ((socket.SO_SNDBUF, 1 << 20), (socket.SO_RCVBUF, 4 << 20)):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                    other.setsockopt(socket.SOL_SOCKET, option, size)
                    granted = other.getsockopt(socket.SOL_SOCKET, option)
                assert vm.sock.getsockopt(socket.SOL_SOCKET, option) == granted
            vm.attachment.link.close()

    asyncio.run(scenario())


def test_one_after_the_other_each_gets_a_socket_of_its_own(path: Path, clients: Clients) -> None:
    async def scenario() -> None:
        async with bed_at(path) as bed:
            ends = {}
            for name in "abcd":
                ends[name] = clients.connect(name)
                ends[name].send(MAGIC)
                vm = (await attached(bed, 1, clients))[name]
                assert vm.is_direct
                ends[name + "'"] = vm.sock
            for name in "abcd":
                ends[name].send(name.encode())
            for name in "abcd":
                assert ends[name + "'"].recv(99) == name.encode()
                ends[name + "'"].close()

    asyncio.run(scenario())


def test_clients_that_come_at_the_same_time_all_get_their_own_frames_and_no_others(
    path: Path, clients: Clients
) -> None:
    names = "abcdef"

    async def scenario() -> None:
        async with bed_at(path) as bed:
            ends = {name: clients.connect(name) for name in names}  # to one and the same socket
            for name in names[:4]:
                ends[name].send(MAGIC)
                ends[name].send(f"{name} 0".encode())
            vms = await attached(bed, 4, clients)
            for name in names[4:]:  # were silent while the others attached
                ends[name].send(f"{name} 0".encode())
            vms |= await attached(bed, 2, clients)
            for name in names:
                ends[name].send(f"{name} 1".encode())
                vms[name].sock.send(f"to {name}".encode())
            for name in names:
                assert [await vms[name].frame() for _ in range(2)] == [f"{name} 0".encode(), f"{name} 1".encode()]
                assert await hear(ends[name]) == f"to {name}".encode()
            late = clients.connect("late")
            late.send(MAGIC)
            vms |= await attached(bed, 1, clients)
            assert vms["late"].is_direct
            for name in names:
                vms[name].attachment.link.close()
            vms["late"].attachment.link.close()

    asyncio.run(scenario())


def test_clients_in_threads_of_their_own_all_attach(path: Path, clients: Clients) -> None:
    count = 40
    gaps: list[str] = []

    async def scenario() -> None:
        async with bed_at(path) as bed:
            start, heard = threading.Barrier(count), {}

            def client(number: int) -> None:
                start.wait(PATIENCE)
                try:
                    sock = clients.connect(f"c{number}")
                except OSError as error:
                    gaps.append(str(error))
                    return
                sock.send(MAGIC)
                sock.send(b"%d" % number)
                heard[number] = sock.recv(99)

            threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
            for thread in threads:
                thread.start()
            vms = await attached(bed, count, clients)
            for name, vm in vms.items():
                assert await vm.frame() == name[1:].encode()
                vm.sock.send(name.encode())
            for thread in threads:
                await asyncio.to_thread(thread.join, PATIENCE)
            assert heard == {number: b"c%d" % number for number in range(count)}
            for vm in vms.values():
                vm.attachment.link.close()

    asyncio.run(scenario())
    assert gaps == []


def test_clients_that_send_to_the_path_each_time_are_served_too(path: Path, clients: Clients) -> None:
    async def scenario() -> None:
        async with bed_at(path) as bed:
            ends = {name: clients.unconnected(name) for name in "ab"}
            for name, end in ends.items():
                end.sendto(MAGIC, str(path))
                end.sendto(f"{name} 0".encode(), str(path))
            vms = await attached(bed, 2, clients)
            for number in (1, 2):
                for name, end in ends.items():
                    end.sendto(f"{name} {number}".encode(), str(path))
                    vms[name].sock.send(f"{number} to {name}".encode())
                    assert await hear(end) == f"{number} to {name}".encode()
            for name, vm in vms.items():
                assert [await vm.frame() for _ in range(3)] == [f"{name} {number}".encode() for number in range(3)]
                ends[name].close()
            await until(lambda: all(vm.attachment.link.is_closed() for vm in vms.values()))
            connected = clients.connect("c")
            connected.send(MAGIC)
            vms |= await attached(bed, 1, clients)
            assert vms["c"].is_direct
            for vm in vms.values():
                vm.attachment.link.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_is_gone_ends_its_link_without_a_word(path: Path, clients: Clients, count: int) -> None:
    async def scenario() -> None:
        async with bed_at(path) as bed:
            ends = {f"c{number}": clients.connect(f"c{number}") for number in range(count)}
            for end in ends.values():
                end.send(MAGIC)
            vms = await attached(bed, count, clients)
            assert not any(vm.attachment.link.is_closed() for vm in vms.values())
            assert vms["c0"].is_direct == (count == 1)
            ends["c0"].close()
            await until(vms["c0"].attachment.link.is_closed)
            assert [name for name, vm in vms.items() if vm.attachment.link.is_closed()] == ["c0"]
            for vm in vms.values():
                vm.attachment.link.close()

    asyncio.run(scenario())


def test_a_client_that_comes_back_by_its_old_name_is_a_new_vm(path: Path, clients: Clients) -> None:
    async def scenario() -> None:
        async with bed_at(path) as bed:
            clients.connect("a").send(MAGIC)
            before = (await attached(bed, 1, clients))["a"]
            clients.close()
            clients.address("a").unlink()
            again = clients.connect("a")
            again.send(MAGIC)
            after = (await attached(bed, 1, clients))["a"]
            await until(before.attachment.link.is_closed)
            assert not after.attachment.link.is_closed()
            before.attachment.link.close()
            after.attachment.link.close()

    asyncio.run(scenario())


def test_a_relayed_vm_that_takes_nothing_holds_up_no_other(path: Path, clients: Clients) -> None:
    async def scenario() -> None:
        async with bed_at(path) as bed:
            ends = {name: clients.connect(name) for name in "ab"}
            for end in ends.values():
                end.send(MAGIC)
            vms = await attached(bed, 2, clients)
            loop = asyncio.get_running_loop()
            for number in range(2000):  # its worker reads nothing
                await loop.run_in_executor(None, ends["a"].send, b"%d" % number + bytes(1000))
            ends["b"].send(b"through")
            assert await vms["b"].frame() == b"through"
            vms["b"].sock.send(b"back")
            assert await hear(ends["b"]) == b"back"
            assert (await vms["a"].frame())[:1] == b"0"
            for vm in vms.values():
                vm.attachment.link.close()

    asyncio.run(scenario())


def test_frames_wait_for_a_relayed_client_whose_queue_is_full(path: Path, clients: Clients) -> None:
    async def scenario() -> None:
        async with bed_at(path) as bed:
            client = clients.unconnected("a")  # has room for net.unix.max_dgram_qlen
            client.sendto(MAGIC, str(path))
            vm = (await attached(bed, 1, clients))["a"]
            loop = asyncio.get_running_loop()
            for number in range(300):
                await loop.sock_sendall(vm.sock, b"%d" % number)
            assert [await hear(client) for _ in range(300)] == [b"%d" % number for number in range(300)]
            vm.attachment.link.close()

    asyncio.run(scenario())


def test_a_relayed_client_that_never_reads_is_offered_its_frame_ever_more_seldom(
    path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = 0
    resume = Relay._resume

    def counting(relay: Relay, vm: RelayedVm) -> None:
        nonlocal offers
        offers += 1
        resume(relay, vm)

    monkeypatch.setattr(Relay, "_resume", counting)

    async def scenario() -> None:
        async with bed_at(path) as bed:
            client = clients.unconnected("a")
            client.sendto(MAGIC, str(path))
            vm = (await attached(bed, 1, clients))["a"]
            with contextlib.suppress(BlockingIOError):
                while True:
                    vm.sock.send(bytes(1000))
                    await asyncio.sleep(0)
            await asyncio.sleep(0.5)
            assert 0 < offers < 50
            vm.attachment.link.close()

    asyncio.run(scenario())


def test_silent_clients_cost_one_look_at_the_system_s_table_for_all(
    path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def counting(*socks: socket.socket) -> list[int | None]:
        looks.append(len(socks))
        return references(*socks)

    async def scenario() -> None:
        async with bed_at(path) as bed:
            for number in range(5):
                client = clients.connect(f"c{number}")
                clients.connect(f"silent{number}")
                client.send(MAGIC)
                (await bed.attachment()).link.close()
                client.close()
            monkeypatch.setattr("supervisor.attach.vfkit.references", counting)
            await until(lambda: len(looks) > 5)
            assert set(looks[-3:]) == {5}

    asyncio.run(scenario())


def test_a_sender_that_cannot_be_answered_is_told_of_once_and_in_nobodys_way(
    path: Path, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with bed_at(path) as bed:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed:
                for _ in range(3):
                    unnamed.sendto(MAGIC, str(path))
                client = clients.connect("a")
                client.send(MAGIC)
                unnamed.sendto(MAGIC, str(path))
                with socket.socket() as held:  # a descriptor is no part of a frame
                    socket.send_fds(client, [b"frame"], [held.fileno()])
                vm = (await attached(bed, 1, clients))["a"]
                assert await vm.frame() == b"frame"
                assert vm.is_direct
                assert bed.attached.empty()
                vm.attachment.link.close()

    asyncio.run(scenario())
    why = f"refused datagrams to unixgram://{path} of a sender without a path of its own, which cannot be answered"
    assert [record.getMessage() for record in caplog.records] == [why]


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"/\xff\n\x1b[31m", r"/\xff\n\x1b[31m"), (b"\0a\0\xff", r"@a\x00\xff")],
    ids=["path", "abstract"],
)
def test_a_client_with_a_name_of_odd_bytes_attaches_and_can_be_shown(
    path: Path, clients: Clients, name: bytes, shown: str
) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            directory = os.fsencode(path.parent)
            client.bind(directory + name if name.startswith(b"/") else name)
            async with bed_at(path) as bed:
                client.connect(str(path))
                client.send(MAGIC)
                attachment = await bed.attachment()
                assert attachment.peer.endswith(f" {path.parent}{shown}" if name.startswith(b"/") else f" {shown}")
                assert codec.decode(codec.encode(Failure("internal", attachment.peer)))
                attachment.link.close()

    asyncio.run(scenario())


def test_only_the_users_named_may_attach(path: Path, clients: Clients, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(allowed: int) -> bool:
        async with bed_at(path, Options(allow_uid=frozenset({allowed}))) as bed:
            client = clients.connect(f"of{allowed}")
            client.send(MAGIC)
            client.send(MAGIC)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    (await bed.attached.get()).link.close()
                    return True
            return False

    assert asyncio.run(scenario(os.getuid()))
    assert not asyncio.run(scenario(os.getuid() + 1))
    why = f"refused datagrams to unixgram://{path} of uid {os.getuid()}: allow-uid does not name it"
    assert [record.getMessage() for record in caplog.records] == [why]


def test_a_path_with_no_room_for_the_next_sockets_name_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "v").ljust(107, "v")
    with pytest.raises(StartError, match="expected a path of at most 106 bytes"):
        VfkitListener(UnixEndpoint(path))
