"""Opens TCP connections and holds them until it is ended: ``python -m bench.hold_flows HOST PORT COUNT``.

A process of its own, as the two ends of 10,000 flows are more descriptors than many systems allow one process.
"""

from __future__ import annotations

import contextlib
import resource
import select
import signal
import socket
import sys

BATCH = 250
"""Connections opened at a time, so that no queue of SYNs overflows."""
TIMEOUT = 10.0
"""s"""


def main(host: str, port: int, count: int) -> None:
    """Open, then wait for a signal."""
    allow_open_files()
    with contextlib.ExitStack() as opened:
        for already in range(0, count, BATCH):
            _open(opened, (host, port), min(BATCH, count - already))
        signal.pause()


def allow_open_files() -> int:
    """Take as many descriptors as the system allows this process and those it starts; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _open(opened: contextlib.ExitStack, address: tuple[str, int], count: int) -> None:
    """Open `count` connections at once and wait until all are established."""
    poller, waiting = select.poll(), {}
    for _ in range(count):
        connection = opened.enter_context(socket.socket())
        connection.setblocking(False)
        connection.connect_ex(address)
        poller.register(connection, select.POLLOUT)
        waiting[connection.fileno()] = connection
    while waiting:
        ready = poller.poll(TIMEOUT * 1000)
        assert ready, f"{len(waiting)} connections were not answered"
        for descriptor, _ in ready:
            error = waiting.pop(descriptor).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert error == 0, f"connect: error {error}"
            poller.unregister(descriptor)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
