"""The template process that workers are forked from: ``python -m worker.zygote FD``.

It has imported everything a worker needs and done nothing else: no threads, no sockets but the one to the supervisor.
So a worker starts in milliseconds and shares its code's pages with all others. `gc.freeze` keeps the collector of the
children off the shared objects, which would otherwise be copied just to be looked at.

Speaks with the supervisor over the SEQPACKET socket FD: `Spawn` with the VM's socket and the worker's end of its own
channel comes in; `Spawned` or `NotSpawned`, `Exited`, or `Failure` for a request that was refused go out. At the end
of that socket the zygote exits; the workers live on.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys

from proto.errors import CodecError
from proto.fdpass import FdChannel
from proto.messages import Exited, Failure, NotSpawned, Spawn, Spawned, ZygoteReady
from worker import main as worker_main

EXIT_CRASHED = 70
"""EX_SOFTWARE of sysexits.h: the worker ended by an exception, which its log shows."""

log = logging.getLogger(__name__)


class Zygote:
    """Forks workers and reports what becomes of them."""

    def __init__(self, channel: FdChannel) -> None:
        self._channel = channel
        # The signal's handler only marks the pipe: children are reaped in the loop, never in between.
        self._wakeup, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the supervisor's end closes."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._wakeup in ready:
                    os.read(self._wakeup, 4096)
                    self._reap()
                if self._channel.fileno() in ready:
                    self._receive()
        except (EOFError, ConnectionError):
            return
        finally:
            self._detach()

    def _receive(self) -> None:
        try:
            message, fds = self._channel.recv()
        except CodecError as error:
            log.warning("refused a message: %s", error)
            return
        try:
            if isinstance(message, Spawn) and len(fds) in (2, 3, 4):
                self._spawn(message, fds[:-1], fds[-1])
            else:
                reason = f"{type(message).__name__} with {len(fds)} descriptors is no Spawn"
                log.warning("refused a message: %s", reason)
                self._channel.send(Failure("bad-request", reason))
        finally:
            for fd in fds:
                os.close(fd)

    def _spawn(self, spawn: Spawn, link_fds: list[int], channel_fd: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._channel.send(NotSpawned(spawn.vm_id, error.errno or errno.EAGAIN))
            return
        if pid == 0:
            self._become_worker(spawn, link_fds, channel_fd)
        self._channel.send(Spawned(spawn.vm_id, pid))

    def _become_worker(self, spawn: Spawn, link_fds: list[int], channel_fd: int) -> None:
        """In the child; does not return. `os._exit`, because the template's way out is not the worker's."""
        status = EXIT_CRASHED
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._detach()
            worker_main.run(spawn, link_fds, channel_fd)
            status = 0
        except Exception:  # the process ends here; what ended it must be told
            log.exception("worker of %s crashed", spawn.vm_id)
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(status)

    def _detach(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._wakeup)
        os.close(self._wakeup_write)
        self._channel.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._channel.send(Exited(pid, os.waitstatus_to_exitcode(status)))


def main(arguments: list[str]) -> int:
    """Be the zygote on the descriptor given as the one argument."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # The supervisor speaks for the terminal's Ctrl-C, and a guest's flows need more descriptors than the usual 1,024.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    channel = FdChannel(socket.socket(fileno=int(arguments[0])))
    gc.collect()
    gc.freeze()
    channel.send(ZygoteReady())
    Zygote(channel).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
