"""The service in this process, with a zygote whose workers the test plays VM to (`fake_zygote.py`)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import zmq.asyncio

from proto.channels import Requester
from proto.messages import (
    Expose,
    Forward,
    ListForwards,
    ListVms,
    Vm,
)
from supervisor.config import Settings
from supervisor.service import Service

MAC = "52:54:00:00:00:01"
OTHER_MAC = "52:54:00:00:00:02"
FAKE_ZYGOTE = (sys.executable, str(Path(__file__).with_name("fake_zygote.py")))


class Guest:
    """A VM's end of the link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, command: str) -> str:
        self.writer.write(command.encode() + b"\n")
        return await self.hear()

    async def hear(self) -> str:
        return (await asyncio.wait_for(self.reader.readline(), 5)).decode().strip()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Host:
    """The running service as its API sees it."""

    def __init__(self, directory: Path, requester: Requester) -> None:
        self.directory = directory
        self.ask = requester.request

    async def attach(self, listener: str = "qemu.sock") -> Guest:
        """A VM whose worker has said hello to the supervisor, not only answered on its link."""
        guest = Guest(*await asyncio.open_unix_connection(str(self.directory / "run" / listener), limit=1 << 20))
        vm_id = json.loads(await guest.say("spawn"))["vm_id"]

        async def is_known() -> bool:
            return any(vm.id == vm_id and vm.counters for vm in await self.vms())

        await until(is_known)
        return guest

    async def vms(self) -> tuple[Vm, ...]:
        found: tuple[Vm, ...] = (await self.ask(ListVms())).vms
        return found

    async def forwards(self) -> tuple[Forward, ...]:
        found: tuple[Forward, ...] = (await self.ask(ListForwards())).forwards
        return found

    async def expose(self, remote: str, network: str = "default", vm: str = "") -> Forward:
        """Forward a free port of this host."""
        with reserved_port() as port:
            forward: Forward = await self.ask(Expose(f"127.0.0.1:{port}", remote, network=network, vm=vm))
        return forward


@contextmanager
def reserved_port() -> Iterator[int]:
    """A TCP port of this host that nobody else is given meanwhile, and that can be listened on."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as who listens does: then both may have it
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def connect(forward: Forward) -> str:
    """What the worker that serves a forward says."""
    host, port = forward.bound.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        return (await asyncio.wait_for(reader.read(), 5)).decode()
    finally:
        writer.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[Host]:
    stop, ready = asyncio.Event(), asyncio.Event()
    given = {"runtime-dir": directory / "run", "state-dir": directory / "state", "api": (), **settings}
    service = Service(Settings.model_validate(given), FAKE_ZYGOTE)
    serving = asyncio.ensure_future(service.run(stop, lambda _: ready.set()))
    waiting = asyncio.ensure_future(ready.wait())
    await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=10)
    waiting.cancel()
    if serving.done():
        await serving
    context = zmq.asyncio.Context()
    requester = Requester(context, f"ipc://{directory}/run/control.sock")
    requester.start()
    try:
        yield Host(directory, requester)
    finally:
        await requester.close()
        context.term()
        stop.set()
        await asyncio.wait_for(serving, 10)
        assert not [path for path in directory.rglob("*") if path.is_socket()]


Scenario = Callable[[Path], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> None:
    """Run a scenario in a directory with a name short enough for sockets; no child may outlive it."""
    before = children()
    with tempfile.TemporaryDirectory(prefix="moorage-") as directory:
        asyncio.run(scenario(Path(directory)))
    assert children() <= before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
