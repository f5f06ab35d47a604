"""Captures, as the supervisor hands them from worker to worker."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from proto.captures import BUFFER_HEADER, BUFFER_SIZE, AddCapture, OpenCapture
from supervisor.captures import Captures
from supervisor.vms import Vm, Vms


class FakeVms:
    """One VM, whose workers are made here; what they were given."""

    def __init__(self) -> None:
        self.vm: Any = SimpleNamespace(id="vm1", worker=None)
        self.given: list[tuple[Any, Any, int, int]] = []
        """Worker, message, and duplicates of the descriptors."""

    def get(self, vm_id: str) -> Vm | None:
        return cast("Vm", self.vm) if self.vm is not None and vm_id == self.vm.id else None

    def start_worker(self) -> Any:
        self.vm.worker = SimpleNamespace(is_ready=True, ended=asyncio.get_running_loop().create_future())
        return self.vm.worker

    def end_worker(self) -> None:
        self.vm.worker.is_ready = False
        self.vm.worker.ended.set_result(None)

    async def pass_descriptor(self, _: Vm, worker: Any, message: Any, fd: int, buffer: int) -> bool:
        self.given.append((worker, message, os.dup(fd), os.dup(buffer)))
        return True


def play(scenario: Callable[[FakeVms, Captures, socket.socket], Awaitable[None]]) -> None:
    async def run() -> None:
        vms = FakeVms()
        captures = Captures(cast("Vms", cast("Any", vms)))
        first = vms.start_worker()
        ours, theirs = socket.socketpair()
        before = len(os.listdir("/proc/self/fd"))
        with ours:
            with theirs:
                captures.take(OpenCapture("vm1", 96), theirs.fileno())
            await turns()
            assert [(worker, message) for worker, message, *_ in vms.given] == [(first, AddCapture(0, 96))]
            assert os.fstat(vms.given[0][3]).st_size == BUFFER_SIZE
            await scenario(vms, captures, ours)
            await turns()
            for *_, fd, buffer in vms.given:
                os.close(fd)
                os.close(buffer)
            ours.settimeout(5)
            while ours.recv(1 << 16):
                pass  # the response is at its end
        assert len(os.listdir("/proc/self/fd")) == before - 2

    asyncio.run(run())


async def turns() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_the_next_worker_gets_the_connection_and_the_buffer_of_the_one_that_died() -> None:
    async def scenario(vms: FakeVms, captures: Captures, _: socket.socket) -> None:
        vms.end_worker()
        captures.settle()
        await turns()
        assert len(vms.given) == 1
        second = vms.start_worker()
        captures.settle()
        await turns()
        assert [worker for worker, *_ in vms.given][1:] == [second]
        one, other = ([os.fstat(fd).st_ino for fd in given[2:]] for given in vms.given)
        assert one == other
        vms.end_worker()
        vms.vm = None
        captures.settle()

    play(scenario)


def test_a_worker_that_died_before_it_could_say_what_it_had_written_ends_its_captures() -> None:
    async def scenario(vms: FakeVms, captures: Captures, _: socket.socket) -> None:
        os.pwrite(vms.given[0][3], BUFFER_HEADER.pack(0, 100, 0, 1), 0)
        vms.end_worker()
        vms.start_worker()
        captures.settle()
        await turns()
        assert len(vms.given) == 1

    play(scenario)


def test_a_reader_that_hangs_up_ends_its_capture_with_or_without_a_worker() -> None:
    for with_worker in (True, False):

        async def scenario(
            vms: FakeVms, captures: Captures, reader: socket.socket, with_worker: bool = with_worker
        ) -> None:
            if not with_worker:
                vms.end_worker()
                captures.settle()
                await turns()
            reader.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.01)

        play(scenario)
