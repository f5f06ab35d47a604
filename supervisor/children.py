"""Processes the supervisor starts itself, and the zygote that forks its workers.

The zygote is a Python process with every import of a worker done; it forks a worker in milliseconds, and reaps it.
If it dies it is started again; workers it had forked live on, only their exit status is not known any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence

from proto.errors import ChannelError, CodecError, RequestTimeout
from proto.fdpass import FdChannel
from proto.messages import Exited, Failure, NotSpawned, Spawn, Spawned, ZygoteReady
from supervisor.errors import NoWorker, StartError

SPAWN_TIMEOUT = 5.0
START_TIMEOUT = 20.0
"""s; for the zygote to load what a worker needs, on a slow and busy machine."""
QUICK_DEATH = 5.0
"""s; a process that lived shorter than this died of something that will happen again."""
LONGEST_DELAY = 10.0
"""s; between two starts of a process that keeps dying."""

log = logging.getLogger(__name__)


class Backoff:
    """How long to wait before a process is started again: not at all at first, then longer while it dies young."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    def delay(self, lived: float) -> float:
        """Seconds to wait after a process that lived for `lived` seconds."""
        if lived >= QUICK_DEATH:
            self._quick_deaths = 0
            return 0.0
        self._quick_deaths += 1
        return 0.0 if self._quick_deaths == 1 else min(0.25 * 2.0 ** min(self._quick_deaths, 10), LONGEST_DELAY)


def python(module: str, *args: str) -> list[str]:
    """The command that runs a module of ours; -P, so that a folder of its name where we were started is no match."""
    return [sys.executable, "-P", "-m", module, *args]


async def start(command: Sequence[str], pass_fds: Sequence[int], env: Mapping[str, str] | None = None) -> Process:
    """Start a child in a session of its own: a Ctrl-C on the terminal is the supervisor's to handle."""
    environment = dict(os.environ if env is None else env)
    environment.pop("NOTIFY_SOCKET", None)  # only the supervisor speaks to systemd
    return await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, pass_fds=pass_fds, env=environment, start_new_session=True
    )


async def end(process: Process, patience: float) -> None:
    """Ask a child to end, and make it after `patience` seconds."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(patience):
            await process.wait()
    except TimeoutError:
        log.warning("process %d does not end; killed", process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def status_in_words(status: int | None) -> str:
    """An exit status as `os.waitstatus_to_exitcode` gives it."""
    if status is None:
        return "ended, how is not known"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


class Zygote:
    """Starts workers."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        self._command = list(command) or python("worker.zygote")
        self._channel: FdChannel | None = None
        self._process: Process | None = None
        self._up = asyncio.Event()
        self._spawning: dict[str, asyncio.Future[int]] = {}
        self._running: dict[int, asyncio.Future[int | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process and keep it alive from now on."""
        await self._launch()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def wait_ready(self) -> None:
        """Wait until workers start at once, so that the first VM waits no longer than the others. Raises StartError
        when that takes longer than `START_TIMEOUT`."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._up.wait()
        except TimeoutError as error:
            raise StartError(f"the worker template did not start in {START_TIMEOUT:g} s; the log says why") from error

    async def close(self, patience: float) -> None:
        """End the process; the workers are ended before."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            await end(self._process, patience)

    async def spawn(self, message: Spawn, fds: Sequence[int]) -> int:
        """Fork a worker; its pid. Raises NoWorker at once where the system has no process for it, ChannelError when it
        does not work in `SPAWN_TIMEOUT` for another reason."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._spawning[message.vm_id] = future
        try:
            async with asyncio.timeout(SPAWN_TIMEOUT):
                await self._up.wait()
                assert self._channel is not None
                await self._channel.asend(message, fds)
                return await future
        except TimeoutError as error:
            raise RequestTimeout(f"the zygote started no worker in {SPAWN_TIMEOUT:g} s") from error
        except (OSError, CodecError) as error:
            raise ChannelError(f"the zygote cannot be reached: {error}") from error
        finally:
            del self._spawning[message.vm_id]

    async def exit_status(self, pid: int, patience: float) -> int | None:
        """How a worker ended; None when that is not known, also not after `patience` seconds."""
        future = self._running.get(pid)
        if future is None:
            return None
        await asyncio.wait([future], timeout=patience)
        return future.result() if future.done() else None

    def is_running(self, pid: int) -> bool:
        """Whether a worker is not known to have ended, so that its pid is still its own."""
        future = self._running.get(pid)
        return future is not None and not future.done()

    def forget(self, pid: int) -> None:
        """Nobody will ask for this worker's end any more."""
        self._running.pop(pid, None)

    async def _launch(self) -> None:
        ours, theirs = FdChannel.pair()
        try:
            self._process = await start([*self._command, str(theirs.fileno())], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            started = time.monotonic()
            await self._read()
            self._up.clear()
            self._abandon()
            assert self._process is not None
            # Its channel is closed, so it is about to end; `end` would poll, and take the exit status from asyncio.
            await asyncio.wait([asyncio.ensure_future(self._process.wait())], timeout=1.0)
            if self._process.returncode is None:
                await end(self._process, patience=1.0)
            log.error("the zygote is gone (%s); starting another", status_in_words(self._process.returncode))
            await asyncio.sleep(backoff.delay(time.monotonic() - started))
            try:
                await self._launch()
            except OSError as error:
                log.error("cannot start the zygote: %s", error)

    async def _read(self) -> None:
        """Take the zygote's messages until it is gone."""
        assert self._channel is not None
        while True:
            try:
                message, fds = await self._channel.arecv()
            except CodecError as error:
                log.warning("refused a message of the zygote: %s", error)
                continue
            except (EOFError, OSError):
                break
            for fd in fds:
                os.close(fd)
            if isinstance(message, ZygoteReady):
                self._up.set()
            elif isinstance(message, Spawned):
                self._on_spawned(message)
            elif isinstance(message, NotSpawned):
                self._on_not_spawned(message)
            elif isinstance(message, Exited):
                self._on_exited(message)
            elif isinstance(message, Failure):
                log.error("the zygote refused: %s", message.message)  # whoever asked runs into its deadline
        self._channel.close()

    def _on_spawned(self, message: Spawned) -> None:
        future = self._spawning.get(message.vm_id)
        if future is not None and not future.done():
            self._running[message.pid] = asyncio.get_running_loop().create_future()
            future.set_result(message.pid)
            return
        # Whoever asked gave up waiting: nobody would ever talk to this worker.
        log.warning("worker %d of %s came too late; killed", message.pid, message.vm_id)
        with contextlib.suppress(ProcessLookupError):
            os.kill(message.pid, signal.SIGKILL)

    def _on_not_spawned(self, message: NotSpawned) -> None:
        future = self._spawning.get(message.vm_id)
        if future is not None and not future.done():
            future.set_exception(NoWorker(message.error))

    def _on_exited(self, message: Exited) -> None:
        future = self._running.get(message.pid)
        if future is not None and not future.done():
            future.set_result(message.status)

    def _abandon(self) -> None:
        """The zygote is gone: nobody will say how its workers end."""
        for running in self._running.values():
            if not running.done():
                running.set_result(None)
        for spawning in self._spawning.values():
            if not spawning.done():
                spawning.set_exception(ChannelError("the zygote died"))
