"""A link of two pipes, as a program has that is started with its standard input and output on them."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.worker.framebed import DEADLINE, GATEWAY_MAC, arp, wide
from worker.engine import Engine
from worker.upcalls import Upcall

FRAME = arp(1)


@dataclass
class Pipes:
    """An engine and the guest's ends of its pipes."""

    engine: Engine
    to_engine: int
    from_engine: int

    def upcall(self) -> tuple[object, ...]:
        """The next upcall that is not about who the guest is."""
        for _ in range(int(DEADLINE * 100)):
            for upcall in self.engine.take_upcalls():
                if upcall[0] != Upcall.GUEST:
                    return upcall
            self.engine.run(0.01)
        raise AssertionError("waited in vain for an upcall")


def wire(frame: bytes) -> bytes:
    return len(frame).to_bytes(2, "little") + frame


@pytest.fixture(params=["epoll", "poll"])
def pipes(request: pytest.FixtureRequest) -> Iterator[Pipes]:
    engine_in, to_engine = os.pipe()
    from_engine, engine_out = os.pipe()
    address = (GATEWAY_MAC, wide("192.168.127.1"), wide("192.168.127.0"), 120)
    engine = Engine(engine_in, "stream16", 1500, *address, link_out_fd=engine_out, readiness=request.param)
    yield Pipes(engine, to_engine, from_engine)
    engine.close()
    for fd in (to_engine, from_engine, engine_in, engine_out):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_frames_come_from_one_pipe_and_go_to_the_other(pipes: Pipes) -> None:
    os.write(pipes.to_engine, wire(FRAME))
    assert pipes.upcall() == (Upcall.FRAME, FRAME)
    assert pipes.engine.send_frame(FRAME)
    pipes.engine.run(0)
    assert os.read(pipes.from_engine, 1 << 20) == wire(FRAME)


def test_a_full_pipe_is_waited_for_and_nothing_is_lost(pipes: Pipes) -> None:
    frame = FRAME.ljust(1514, b"x")
    count = 0
    while pipes.engine.counters()["link.blocked"] == 0:
        assert pipes.engine.send_frame(frame)
        pipes.engine.run(0)
        count += 1
    pipes.engine.run(0.02)  # past the time in which it waits for the link alone
    received = b""
    while len(received) < count * (len(frame) + 2):
        received += os.read(pipes.from_engine, 1 << 20)
        pipes.engine.run(0.01)
    assert received == wire(frame) * count


def test_the_end_of_the_pipe_is_the_end_of_the_link(pipes: Pipes) -> None:
    os.close(pipes.to_engine)
    assert pipes.upcall() == (Upcall.LINK_CLOSED, "eof", True)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_pipe_that_nobody_reads_any_more_ends_the_link(pipes: Pipes, is_full: bool) -> None:
    while is_full and pipes.engine.counters()["link.blocked"] == 0:
        pipes.engine.send_frame(FRAME.ljust(1514, b"x"))
        pipes.engine.run(0)
    if is_full:
        pipes.engine.run(0.02)  # until it asks to be told of room
    os.close(pipes.from_engine)
    pipes.engine.send_frame(FRAME)
    assert pipes.upcall() == (Upcall.LINK_CLOSED, "Broken pipe", True)
