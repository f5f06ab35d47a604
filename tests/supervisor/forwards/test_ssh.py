"""Unix sockets over SSH: a real carrier process between a unix socket and an SSH server in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from proto.fdpass import FdChannel
from proto.ssh import CallSshServer, CarrySsh
from supervisor.forwards import ssh_carrier
from supervisor.forwards.ssh import SshForward

DEADLINE = 30.0


class Guest(asyncssh.SSHServer):
    """Lets one user in, by key."""

    def begin_auth(self, username: str) -> bool:
        return True

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn

    def unix_connection_requested(self, dest_path: str) -> bool | asyncssh.SSHUNIXSession[bytes]:
        return True


class Scene:
    """A forward and what is behind it: an echo that answers ``N: `` and what it got, at the end of input."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.inside, self.outside = directory / "inside", directory / "outside"
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.key.write_private_key(directory / "key")
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(directory / "stranger")
        (directory / "authorized").write_bytes(self.key.export_public_key())
        self.calls = 0
        self.refused_calls = 0
        """Of the next ones, how many find no guest."""
        self.connections: list[asyncssh.SSHServerConnection] = []

    def destination(self, key: str = "key", path: str = "", passphrase: str = "", secure: bool = False) -> CarrySsh:
        """`key` is a file of the directory."""
        key_file = str(self.directory / key)
        return CarrySsh("core", "192.168.127.2", 22, path or str(self.inside), key_file, passphrase, secure)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SshForward]:
        """The forward, with a process behind it."""
        async with self._around() as listener:
            forward = SshForward(listener, self.destination(), {}, self._call)
            try:
                yield forward
            finally:
                await forward.stop(5.0)

    @asynccontextmanager
    async def carrying(self, destination: CarrySsh) -> AsyncIterator[None]:
        """What runs in the process, in this one."""
        async with self._around() as listener:
            ours, theirs = FdChannel.pair()
            carrier = asyncio.ensure_future(ssh_carrier.serve(theirs))
            await ours.asend(destination, [listener.fileno()])
            answering = asyncio.ensure_future(self._answer(ours))
            yield
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            ours.close()
            await carrier
            theirs.close()

    @asynccontextmanager
    async def _around(self) -> AsyncIterator[socket.socket]:
        """The listening socket, and the echo."""
        echo = await asyncio.start_unix_server(self._echo, self.inside)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.outside))
            listener.listen()
            listener.setblocking(False)
            yield listener
        for connection in self.connections:
            connection.abort()
        echo.close()

    async def _answer(self, channel: FdChannel) -> None:
        while True:
            message, (fd,) = await channel.arecv()
            assert message == CallSshServer()
            await self._call(fd)
            os.close(fd)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"echo: " + await reader.read())
        writer.close()

    async def _call(self, fd: int) -> bool:
        self.calls += 1
        if self.refused_calls:
            self.refused_calls -= 1
            return False
        sock = socket.socket(fileno=os.dup(fd))
        server = await asyncssh.run_server(
            sock,
            server_factory=Guest,
            server_host_keys=[self.host_key],
            authorized_client_keys=str(self.directory / "authorized"),
        )
        self.connections.append(server)
        return True

    async def ask(self, text: bytes) -> bytes:
        """What a client gets back."""
        reader, writer = await asyncio.open_unix_connection(self.outside)
        writer.write(text)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


def play(directory: Path, scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE):
            await scenario(Scene(directory))

    asyncio.run(run())


def carriers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "supervisor.forwards.ssh_carrier" in child.cmdline()]


def test_clients_share_a_connection_that_the_first_one_makes(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.running():
            assert carriers() == []
            assert await asyncio.gather(*(scene.ask(b"%d" % n * 100_000) for n in range(10))) == [
                b"echo: " + b"%d" % n * 100_000 for n in range(10)
            ]
            assert scene.calls == 1
            assert len(carriers()) == 1
        assert carriers() == []

    play(tmp_path, scenario)


def test_a_server_that_is_not_there_yet_is_called_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.refused_calls = 3
        async with scene.running():
            assert await scene.ask(b"at last") == b"echo: at last"
            assert scene.calls == 4

    play(tmp_path, scenario)


def test_a_connection_that_broke_is_made_anew(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.running():
            assert await scene.ask(b"1") == b"echo: 1"
            scene.connections[0].abort()
            assert await scene.ask(b"2") == b"echo: 2"
            assert scene.calls == 2

    play(tmp_path, scenario)


def test_a_carrier_that_dies_is_replaced(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.running():
            assert await scene.ask(b"1") == b"echo: 1"
            (carrier,) = carriers()
            carrier.send_signal(signal.SIGKILL)
            assert await scene.ask(b"2") in (b"echo: 2", b"")
            assert await scene.ask(b"3") == b"echo: 3"

    play(tmp_path, scenario)


def test_a_client_outlives_its_forward(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.running() as forward:
            reader, writer = await asyncio.open_unix_connection(scene.outside)
            assert await scene.ask(b"connected") == b"echo: connected"
            forward.close()
            writer.write(b"still here")
            writer.write_eof()
            assert await reader.read() == b"echo: still here"
            writer.close()
            await forward.finished()
            assert carriers() == []

    play(tmp_path, scenario)


def test_a_forward_that_nobody_used_leaves_the_loop_as_it_was(tmp_path: Path) -> None:
    """Its socket is closed at once after it, and the next one has the same number."""

    async def scenario(scene: Scene) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(scene.outside))
        listener.listen()
        number = listener.fileno()
        forward = SshForward(listener, scene.destination(), {}, scene._call)
        await asyncio.sleep(0)
        forward.close()
        listener.close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert number in (ours.fileno(), theirs.fileno())
            heard = asyncio.Event()
            asyncio.get_running_loop().add_reader(number, heard.set)
            await forward.finished()
            for end in (ours, theirs):
                end.send(b"x")
            await heard.wait()
            asyncio.get_running_loop().remove_reader(number)

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"key": "locked", "passphrase": "open sesame"}, ""),
        ({"key": "locked"}, "locked cannot be used"),
        ({"key": "no-such-file"}, "No such file"),
        ({"key": "authorized"}, "authorized cannot be used"),
        ({"key": "stranger"}, "the SSH server refused: Permission denied"),
        ({"path": "/no/such/socket"}, "the SSH server cannot open the socket"),
        ({"secure": True}, "the SSH server refused: Host key is not trusted"),
    ],
    ids=lambda value: "-".join(f"{name}={of}" for name, of in value.items()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_reached_ends_the_client_and_says_why(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    reason: str,
) -> None:
    async def scenario(scene: Scene) -> None:
        if settings.get("key") == "locked":
            scene.key.write_private_key(tmp_path / "locked", passphrase="open sesame", rounds=50)
        async with scene.carrying(scene.destination(**settings)):
            try:
                answer = await scene.ask(b"?")
            except ConnectionError:
                answer = b""
            assert answer == (b"" if reason else b"echo: ?")

    monkeypatch.setenv("HOME", str(tmp_path))
    play(tmp_path, scenario)
    said = [record.getMessage() for record in caplog.records if record.name == "moorage.ssh"]
    assert [reason in line for line in said] == [True] * bool(reason), said


def test_a_server_that_never_comes_ends_the_client_and_says_so_at_once_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshd on deviceIP:22 tried up to 60 times; final failure ends gvproxy. Better: it ends the client."""

    async def scenario(scene: Scene) -> None:
        scene.refused_calls = 1000
        async with scene.carrying(scene.destination()):
            assert await scene.ask(b"?") == b""
            scene.refused_calls = 0
            assert await scene.ask(b"?") == b"echo: ?"

    monkeypatch.setattr(ssh_carrier, "TRIES", 3)
    caplog.set_level("INFO", "moorage.ssh")
    play(tmp_path, scenario)
    first, last = [record.getMessage() for record in caplog.records if record.name == "moorage.ssh"]
    assert first.startswith(f"core@192.168.127.2:22{tmp_path}/inside: no SSH server yet (")
    assert f"core@192.168.127.2:22{tmp_path}/inside: no SSH server after 3 tries: " in last


def test_a_host_key_that_is_known_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(scene: Scene) -> None:
        (tmp_path / ".ssh").mkdir()
        known = b"192.168.127.2 " + scene.host_key.export_public_key()
        (tmp_path / ".ssh" / "known_hosts").write_bytes(known)
        async with scene.carrying(scene.destination(secure=True)):
            assert await scene.ask(b"?") == b"echo: ?"

    monkeypatch.setenv("HOME", str(tmp_path))
    play(tmp_path, scenario)
