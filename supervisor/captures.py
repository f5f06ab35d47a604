"""Captures of a VM's traffic, which an HTTP request asks for: the response is pcapng, and grows as long as it is read.

The connection comes from the API server. The headers are written here; from then on the VM's worker writes to it, as
far as it is read: `worker.capture`. It is kept open here as well, to be told when its reader hangs up, which ends the
capture. The end of the worker does so too: nobody else knows whether it had written a whole block.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from http import HTTPStatus

from proto import pcapng
from proto.captures import AddCapture, OpenCapture
from proto.errors import RequestFailed
from supervisor.vms import Vm, Vms, Worker

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

    def take(self, wanted: OpenCapture, fd: int) -> None:
        """Capture to a connection, of which the caller keeps its descriptor. Raises RequestFailed."""
        vm = self._vms.get(wanted.vm_id)
        if vm is None:
            raise RequestFailed.because("not-found", f"there is no VM {wanted.vm_id}; GET /v1/vms lists them")
        if vm.worker is None or not vm.worker.is_ready:
            raise RequestFailed.because("unavailable", f"the worker of {vm.id} is just starting; try again in a moment")
        if Counter(self._running.values())[vm.id] >= MAX_CAPTURES:
            raise RequestFailed.because("conflict", f"{vm.id} has {MAX_CAPTURES} captures already; end one of them")
        task = asyncio.get_running_loop().create_task(self._run(vm, vm.worker, wanted.snaplen, os.dup(fd)))
        self._running[task] = vm.id
        task.add_done_callback(self._running.pop)

    async def close(self) -> None:
        """End them all."""
        tasks = tuple(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, vm: Vm, worker: Worker, snaplen: int, fd: int) -> None:
        log.info("a capture of %s begins", vm.id)
        try:
            os.set_blocking(fd, False)
            os.write(fd, HEAD + pcapng.section("moorage") + pcapng.interface(vm.id, snaplen))
            if await self._vms.pass_descriptor(vm, worker, AddCapture(0, snaplen), fd):
                await _until_hung_up(fd, worker)
        except OSError as error:
            log.info("the capture of %s is read by nobody: %s", vm.id, error)
        finally:
            os.close(fd)
            log.info("a capture of %s ended", vm.id)


async def _until_hung_up(fd: int, worker: Worker) -> None:
    """Wait for the reader of a connection to go, or for the worker that writes to it."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()

    def on_readable() -> None:
        # What a reader sends is no concern of ours: an answer is under way. Only its end is.
        try:
            is_over = not os.read(fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over and not gone.done():
            gone.set_result(None)

    loop.add_reader(fd, on_readable)
    try:
        await asyncio.wait([gone, worker.ended], return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(fd)
