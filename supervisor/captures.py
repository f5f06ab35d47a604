"""Captures of a VM's traffic, which an HTTP request asks for: the response is pcapng, and grows as long as it is read.

The connection comes from the API server. The headers are written here; from then on the VM's worker writes to it, as
far as it is read: `worker.capture`. It is kept open here as well, to be told when its reader hangs up, which ends the
capture, and for the next worker, where this one dies: that goes on with what its predecessor's buffer holds.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections import Counter
from http import HTTPStatus

from proto import pcapng
from proto.captures import BUFFER_HEADER, BUFFER_SIZE, AddCapture, OpenCapture
from proto.errors import RequestFailed
from supervisor.vms import Vm, Vms

MAX_CAPTURES = 4
"""Of one VM at a time."""
HEAD = (
    f"HTTP/1.1 200 {HTTPStatus.OK.phrase}\r\nContent-Type: {pcapng.MEDIA_TYPE}\r\n"
    "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
).encode()

log = logging.getLogger(__name__)


class Captures:
    """All that run; `take` is a handler of what the API server hands over."""

    def __init__(self, vms: Vms) -> None:
        self._vms = vms
        self._running: dict[asyncio.Task[None], str] = {}
        """With their VMs' ids."""
        self._change: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, wanted: OpenCapture, fd: int) -> None:
        """Capture to a connection, of which the caller keeps its descriptor. Raises RequestFailed."""
        vm = self._vms.get(wanted.vm_id)
        if vm is None:
            raise RequestFailed.because("not-found", f"there is no VM {wanted.vm_id}; GET /v1/vms lists them")
        if vm.worker is None or not vm.worker.is_ready:
            raise RequestFailed.because("unavailable", f"the worker of {vm.id} is just starting; try again in a moment")
        if Counter(self._running.values())[vm.id] >= MAX_CAPTURES:
            raise RequestFailed.because("conflict", f"{vm.id} has {MAX_CAPTURES} captures already; end one of them")
        task = asyncio.get_running_loop().create_task(self._run(vm, wanted.snaplen, os.dup(fd)))
        self._running[task] = vm.id
        task.add_done_callback(self._running.pop)

    def settle(self) -> None:
        """A worker came or went, or a VM."""
        self._change.set_result(None)
        self._change = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """End them all."""
        tasks = tuple(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, vm: Vm, snaplen: int, fd: int) -> None:
        log.info("a capture of %s begins", vm.id)
        buffer = _make_buffer()
        try:
            os.set_blocking(fd, False)
            os.write(fd, HEAD + pcapng.section("moorage") + pcapng.interface(vm.id, snaplen))
            await self._carry(vm, AddCapture(0, snaplen), fd, buffer)
        except OSError as error:
            log.info("the capture of %s is read by nobody: %s", vm.id, error)
        finally:
            os.close(fd)
            os.close(buffer)
            log.info("a capture of %s ended", vm.id)

    async def _carry(self, vm: Vm, message: AddCapture, fd: int, buffer: int) -> None:
        """Until the reader hangs up or the VM is gone: see that the VM's worker, whichever it is, has the capture."""
        hung_up = _watch(fd)
        try:
            while not hung_up.done() and self._vms.get(vm.id) is vm:
                ending: asyncio.Future[None] = self._change
                if vm.worker is not None and vm.worker.is_ready:
                    if not _is_known(buffer):
                        log.warning("the worker of %s died as it wrote to a capture, which ends", vm.id)
                        return
                    ending = vm.worker.ended
                    await self._vms.pass_descriptor(vm, vm.worker, message, fd, buffer)
                await asyncio.wait([hung_up, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asyncio.get_running_loop().remove_reader(fd)


def _make_buffer() -> int:
    """What a worker keeps in it is a guest's, so that nobody may change its size under the next one."""
    fd = os.memfd_create("capture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, BUFFER_SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _is_known(buffer: int) -> bool:
    """Whether a worker that died has told what the reader lacks."""
    start, end, _, writing = BUFFER_HEADER.unpack(os.pread(buffer, BUFFER_HEADER.size, 0))
    known: bool = start <= end <= BUFFER_SIZE - BUFFER_HEADER.size and not writing
    return known


def _watch(fd: int) -> asyncio.Future[None]:
    """A future that is done when the reader of a connection hangs up; the caller ends the watch."""
    loop = asyncio.get_running_loop()
    hung_up = loop.create_future()

    def on_readable() -> None:
        # What a reader sends is no concern of ours: an answer is under way. Only its end is.
        try:
            is_over = not os.read(fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over and not hung_up.done():
            hung_up.set_result(None)

    loop.add_reader(fd, on_readable)
    return hung_up
