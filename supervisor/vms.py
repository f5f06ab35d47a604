"""The attached VMs, each with one worker that is replaced when it dies.

A VM's life is one task: start a worker on the VM's socket, wait for its end, then either start another (the worker
died) or let the VM go (its link is closed). The supervisor keeps the socket open all the while, so that the guest sees
no link loss; it never reads from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from proto import messages
from proto.channels import EventPublisher, Responder
from proto.codec import Message
from proto.counters import lasting
from proto.errors import ChannelError, CodecError, RequestFailed
from proto.events import VmAttached, VmDetached, WorkerRestarted
from proto.fdpass import FdChannel
from proto.logrus import LogFormat
from proto.messages import (
    Failure,
    GetStats,
    Shutdown,
    Spawn,
    UpdateNetwork,
    WorkerStats,
)
from supervisor.attach.listener import Attachment
from supervisor.capture_file import CaptureFile
from supervisor.children import Backoff, Zygote, status_in_words
from supervisor.errors import NoWorker
from supervisor.networks import Network

STATUS_PATIENCE = 0.3
"""s from the end of a worker's channel to its exit status; both come at once when the process dies."""
PASS_TIMEOUT = 2.0
"""s for a worker to take a descriptor."""
UPDATE_TIMEOUT = 2.0
"""s for a worker to take over a changed network."""
MAX_WARNINGS = 16
"""Of one VM, about what it uses and should not."""
REASON_PATIENCE = 0.5
"""s for the `LinkClosed` of a worker that has already ended; it travels on another socket."""

log = logging.getLogger(__name__)


class Worker:
    """One run of a worker process."""

    def __init__(self, pid: int, channel: FdChannel, network: messages.Network) -> None:
        self.pid = pid
        self.channel = channel
        self.network = network
        """What it was last told of its network."""
        self.is_ready = False
        """It said hello and has not ended."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.passing = asyncio.Lock()
        """Held by who gives it a descriptor."""


class Vm:
    """An attached VM."""

    def __init__(self, vm_id: str, network: Network, attachment: Attachment) -> None:
        self.id = vm_id
        self.network = network
        self.attachment = attachment
        self.attached_at = time.time()
        self.runs = 0
        """Workers it has had."""
        self.capture_interface = -1
        """Its number in the file of captures; -1: there is none."""
        self.mac = ""
        self.ip = ""
        self.worker: Worker | None = None
        self.greeted_by = 0
        """The pid in the last hello; it may come before the zygote tells the pid."""
        self._warned: set[str] = set()
        self.counters_told: dict[str, int] = {}
        """The last that its worker told; its very last words may come after its end."""
        self.counters_before: Counter[str] = Counter()
        """Of the workers it had before."""
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why the link is closed, once it is."""

    @property
    def restarts(self) -> int:
        """How often its worker was replaced."""
        return max(0, self.runs - 1)

    def counters(self) -> Counter[str]:
        """The last told by the worker, and those of the workers before."""
        total = self.counters_before.copy()
        total.update(lasting(self.counters_told) if self.worker is None else self.counters_told)
        return total

    def take_worker(self, worker: Worker) -> None:
        """The next one carries it."""
        self.counters_before.update(lasting(self.counters_told))
        self.counters_told = {}
        self.runs += 1
        self.worker = worker

    def warn_of(self, what: str) -> None:
        """The guest uses what is not its own: say so once, and of a guest that tries everything not for ever."""
        if what not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(what)
            log.warning("%s uses %s, which is not its own", self.id, what)

    @property
    def is_gone(self) -> bool:
        """The guest is no more, though its link does not say so."""
        return self.attachment.gone is not None and self.attachment.gone.done()

    def close(self, reason: str) -> None:
        """The link is at its end."""
        if not self.closed.done():
            self.closed.set_result(reason)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker is told alike."""

    control_address: str
    log_level: str
    log_format: LogFormat
    capture_file: CaptureFile | None = None
    ends_with_supervisor: bool = False


class Vms:
    """Every VM that is attached. `on_change` is called when a worker came or went: forwards may have to move."""

    def __init__(
        self,
        zygote: Zygote,
        responder: Responder,
        settings: WorkerSettings,
        events: EventPublisher,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._zygote = zygote
        self._responder = responder
        self._settings = settings
        self._events = events
        self._on_change = on_change
        self._vms: dict[str, Vm] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)
        self._stopping = False
        self.counters_ended: Counter[str] = Counter()
        """Of VMs that are gone."""

    def __iter__(self) -> Iterator[Vm]:
        return iter(tuple(self._vms.values()))

    def get(self, vm_id: str) -> Vm | None:
        """The VM of that id."""
        return self._vms.get(vm_id)

    def named(self, network: Network, name: str) -> Vm | None:
        """The VM of a network that has that id, or else that MAC."""
        return next((vm for vm in self if vm.network is network and name in (vm.id, vm.mac)), None)

    def is_attached(self, vm_id: str) -> bool:
        """Whether a VM is at the other end; of one that hung up, not even its worker may know it yet."""
        vm = self._vms.get(vm_id)
        return vm is not None and not vm.attachment.link.is_closed()

    def attach(self, network: Network, attachment: Attachment) -> Vm | None:
        """Serve a fresh connection; None: the service stops."""
        if self._stopping:
            attachment.link.close()
            return None
        vm = Vm(f"vm{next(self._numbers)}", network, attachment)
        log.info("%s attached to %s on %s (%s)", vm.id, network.name, attachment.listener, attachment.peer)
        self._vms[vm.id] = vm
        if self._settings.capture_file is not None:
            vm.capture_interface = self._settings.capture_file.add_interface(vm.id)
        self._events.publish(VmAttached(vm.id, network.name))
        self._tasks[vm.id] = asyncio.get_running_loop().create_task(self._live(vm), name=vm.id)
        if attachment.gone is not None:
            attachment.gone.add_done_callback(lambda gone: self._end(vm, gone.result()))
        return vm

    async def greet(self, vm: Vm, pid: int) -> None:
        """A worker said hello: from now on it can be asked and given forwards."""
        vm.greeted_by = pid
        worker = vm.worker
        if worker is None or worker.pid != pid or worker.is_ready:
            return
        worker.is_ready = True
        log.info("worker %d carries %s", pid, vm.id)
        await self._tell_network(vm, worker)
        await self._on_change()

    async def tell_networks(self) -> None:
        """Networks changed: tell the workers."""
        await asyncio.gather(*(self._tell_network(vm, vm.worker) for vm in self if vm.worker is not None))

    async def ask(self, vm_id: str, worker: Worker, question: Message, patience: float) -> Message:
        """A worker's answer. Raises ChannelError; at once, not after `patience`, when the worker dies over it."""
        asking = asyncio.ensure_future(self._responder.request(vm_id.encode(), question, patience))
        try:
            await asyncio.wait([asking, worker.ended], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise RequestFailed.because("unavailable", f"the worker of {vm_id} ended")
            return asking.result()
        finally:
            asking.cancel()

    async def tell(self, vm: Vm, message: Message) -> None:
        """Send a worker what needs no answer, before any answer that is sent later; one that is gone misses it."""
        with contextlib.suppress(ChannelError):
            await self._responder.notify(vm.id.encode(), message)

    async def pass_descriptor(self, vm: Vm, worker: Worker, message: Message, *fds: int) -> bool:
        """Give a worker a message, and duplicates of `fds` with it; False: it cannot take it."""
        try:
            async with asyncio.timeout(PASS_TIMEOUT), worker.passing:
                await worker.channel.asend(message, fds)
        except TimeoutError:
            log.error("the worker of %s takes no descriptors; killed", vm.id)
            self.kill(worker)
            return False
        except (OSError, EOFError) as error:
            log.info("the worker of %s cannot take %s: %s", vm.id, type(message).__name__, error)
            return False
        return True

    async def refresh_counters(self, patience: float) -> None:
        """Ask all workers for their counters now; of those that do not answer in time, the last told stay."""

        async def ask(vm: Vm, worker: Worker) -> None:
            with contextlib.suppress(ChannelError):
                answer = await self.ask(vm.id, worker, GetStats(), patience)
                if isinstance(answer, WorkerStats):
                    vm.counters_told = answer.counters

        await asyncio.gather(*(ask(vm, vm.worker) for vm in self if vm.worker is not None and vm.worker.is_ready))

    async def stop(self, patience: float) -> None:
        """End every worker: ask, wait for `patience` seconds, then kill."""
        self._stopping = True
        for vm in self:
            vm.close("the service stops")
            with contextlib.suppress(RequestFailed):
                await self._responder.notify(vm.id.encode(), Shutdown())
        tasks = tuple(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        for vm in self:
            if vm.worker is not None:
                log.warning("the worker of %s does not end; killed", vm.id)
                self.kill(vm.worker)
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def kill(self, worker: Worker, how: signal.Signals = signal.SIGKILL) -> None:
        """End a worker that does not do what it should; its VM gets another."""
        if self._zygote.is_running(worker.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, how)

    def _end(self, vm: Vm, reason: str) -> None:
        """The VM is no more, though its link does not say so."""
        vm.close(reason)
        if vm.worker is not None:
            self.kill(vm.worker, signal.SIGTERM)

    async def _tell_network(self, vm: Vm, worker: Worker) -> None:
        network = vm.network.describe(vm.id, time.time())
        if not worker.is_ready or worker.network == network:
            return
        worker.network = network
        try:
            await self.ask(vm.id, worker, UpdateNetwork(network), UPDATE_TIMEOUT)
        except ChannelError as error:
            if not worker.ended.done():
                log.error("%s does not take the changed network: %s", vm.id, error)

    async def _live(self, vm: Vm) -> None:
        try:
            await self._keep_worker(vm)
        finally:
            reason = vm.closed.result() if vm.closed.done() else "the service stops"
            log.info("%s detached: %s", vm.id, reason)
            vm.attachment.link.close()
            del self._vms[vm.id], self._tasks[vm.id]
            self.counters_ended.update(vm.counters())
            vm.network.forget(vm.id)
            self._events.publish(VmDetached(vm.id, reason))
            await self._on_change()

    async def _keep_worker(self, vm: Vm) -> None:
        backoff = Backoff()
        while not vm.closed.done():
            started = time.monotonic()
            try:
                worker = await self._start_worker(vm)
            except NoWorker as error:
                if vm.runs == 0 and vm.attachment.gone is None:  # it can come again, which a device cannot
                    log.error("refused %s: no worker for it: %s", vm.id, error)
                    return vm.close("no worker for it")
                ending, status = str(error), None
            except (ChannelError, OSError) as error:
                ending, status = str(error), None
            else:
                if vm.restarts:
                    self._events.publish(WorkerRestarted(vm.id, worker.pid, ending))
                if vm.greeted_by == worker.pid:
                    await self.greet(vm, worker.pid)
                if vm.is_gone:
                    self.kill(worker, signal.SIGTERM)
                status = await self._wait_end(vm, worker)
                ending = status_in_words(status)
            if status == 0:  # a worker ends by itself only when its link is at an end
                await asyncio.wait([vm.closed], timeout=REASON_PATIENCE)
                vm.close("its worker ended")
            if vm.closed.done() or self._stopping:
                return
            if vm.attachment.link.is_closed():
                return vm.close("eof")
            delay = backoff.delay(time.monotonic() - started)
            log.error("the worker of %s died (%s); starting another in %g s", vm.id, ending, delay)
            await asyncio.wait([vm.closed], timeout=delay)

    async def _start_worker(self, vm: Vm) -> Worker:
        try:
            ours, theirs = FdChannel.pair()
        except OSError as error:
            raise NoWorker(error.errno or errno.EMFILE) from error
        # Hosts may be many and change often: they follow the hello, over the channel that takes large messages.
        network = dataclasses.replace(vm.network.describe(vm.id, time.time()), hosts={})
        message = Spawn(
            vm_id=vm.id,
            framing=vm.attachment.framing,
            network=network,
            control_address=self._settings.control_address,
            resync=vm.runs > 0,
            guest_mac=vm.mac,
            first_bytes=b"" if vm.runs else vm.attachment.first_bytes,
            capture_interface=vm.capture_interface,
            log_level=self._settings.log_level,
            log_format=self._settings.log_format,
            ends_with_supervisor=self._settings.ends_with_supervisor,
        )
        file = self._settings.capture_file
        captures = [] if file is None else [file.fileno()]
        try:
            pid = await self._zygote.spawn(message, [*vm.attachment.link.filenos(), *captures, theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = Worker(pid, ours, network)
        vm.take_worker(worker)
        return worker

    async def _wait_end(self, vm: Vm, worker: Worker) -> int | None:
        """Wait until the worker's channel is at its end, then for its exit status."""
        try:
            await self._drain(vm, worker.channel)
        finally:
            worker.is_ready = False
            worker.ended.set_result(None)
            worker.channel.close()
            vm.worker = None
        await self._on_change()
        status = await self._zygote.exit_status(worker.pid, STATUS_PATIENCE)
        self.kill(worker)  # two workers on one link would tear its frames apart
        self._zygote.forget(worker.pid)
        return status

    async def _drain(self, vm: Vm, channel: FdChannel) -> None:
        while True:
            try:
                message, fds = await channel.arecv()
            except CodecError as error:
                log.warning("refused a message of the worker of %s: %s", vm.id, error)
                continue
            except (EOFError, OSError):
                return
            for fd in fds:
                os.close(fd)
            if isinstance(message, Failure):
                log.error("the worker of %s refused: %s", vm.id, message.message)
