"""What Moorage may cost, by counts: one table, so that a change for the worse has to be made here in the open.

Counts do not depend on how fast or busy a machine is, except a little: how many frames one system call finds depends on
who runs when, so those have room of about twice what was measured; the others have little.
"""

from __future__ import annotations

from dataclasses import dataclass

UP, DOWN = "guest to host", "host to guest"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One limit."""

    measured: float
    """When the limit was last set."""
    limit: float


SYSCALLS = "syscalls per MB, {}, MTU {}"
WAITS = "wakeups per MB, {}, MTU {}"
INSTRUCTIONS = "instructions per full segment, {}, MTU {}"
UNCOUNTED = "syscalls per MB that the engine's counters do not know"
PING_PONG = "syscalls per 1-byte ping-pong"
CONNECTION = "syscalls per connection with 1 byte each way"
CONNECTION_TRACED = "syscalls per connection with 1 byte each way, by strace"
UNCOUNTED_CONNECTION = "of them, those the engine's counters do not know"
FIRST_UPCALLS = "Python upcalls of the first connection to a destination"
LATER_UPCALLS = "Python upcalls of all later connections"

CEILINGS = {
    SYSCALLS.format(UP, 1500): Ceiling(measured=36, limit=80),
    SYSCALLS.format(DOWN, 1500): Ceiling(measured=26, limit=55),
    SYSCALLS.format(UP, 65520): Ceiling(measured=24, limit=55),
    SYSCALLS.format(DOWN, 65520): Ceiling(measured=22, limit=50),
    WAITS.format(UP, 1500): Ceiling(measured=9.2, limit=22),
    WAITS.format(DOWN, 1500): Ceiling(measured=11, limit=25),
    WAITS.format(UP, 65520): Ceiling(measured=6.3, limit=15),
    WAITS.format(DOWN, 65520): Ceiling(measured=8.5, limit=20),
    # making and ending the connection
    UNCOUNTED: Ceiling(measured=0.2, limit=1),
    # link: wait, recv, send; host: wait, send, recv
    PING_PONG: Ceiling(measured=6.0, limit=6.5),
    CONNECTION: Ceiling(measured=14, limit=26),
    CONNECTION_TRACED: Ceiling(measured=20, limit=33),
    # socket, the second connect, epoll_ctl, setsockopt, shutdown, close
    UNCOUNTED_CONNECTION: Ceiling(measured=6.0, limit=7),
    FIRST_UPCALLS: Ceiling(measured=1, limit=1),
    LATER_UPCALLS: Ceiling(measured=0, limit=0),
    INSTRUCTIONS.format(UP, 1500): Ceiling(measured=2012, limit=2300),
    INSTRUCTIONS.format(DOWN, 1500): Ceiling(measured=1779, limit=2100),
}


def hold(what: str, count: float) -> None:
    """Fail where `count` is over the ceiling of that name; printed, so that a better one can be noted."""
    ceiling = CEILINGS[what]
    print(f"{what}: {count:.2f} (ceiling {ceiling.limit:g}; was {ceiling.measured:g})")
    assert count <= ceiling.limit, f"{what}: {count:.2f} is over the ceiling of {ceiling.limit:g}"
