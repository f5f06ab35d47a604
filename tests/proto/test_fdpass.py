import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from proto.codec import MAX_MESSAGE_SIZE, encode
from proto.errors import CodecError
from proto.fdpass import MAX_FDS, FdChannel
from proto.messages import Exited, Failure, Shutdown, Spawned


@pytest.fixture
def pair() -> Iterator[tuple[FdChannel, FdChannel]]:
    left, right = FdChannel.pair()
    yield left, right
    left.close()
    right.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_message_arrives_with_a_working_descriptor(pair: tuple[FdChannel, FdChannel]) -> None:
    reader, writer = os.pipe()
    pair[0].send(Spawned("vm1", 7), [writer])
    os.close(writer)
    message, fds = pair[1].recv()
    assert message == Spawned("vm1", 7)
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"through")
    assert os.read(reader, 20) == b"through"
    os.close(fds[0])
    os.close(reader)


def test_messages_keep_their_bounds(pair: tuple[FdChannel, FdChannel]) -> None:
    pair[0].send(Spawned("vm1", 1))
    pair[0].send(Exited(1, -9))
    assert [pair[1].recv()[0] for _ in range(2)] == [Spawned("vm1", 1), Exited(1, -9)]


def test_the_end_is_eof(pair: tuple[FdChannel, FdChannel]) -> None:
    pair[0].close()
    with pytest.raises(EOFError):
        pair[1].recv()


def test_junk_is_refused_and_its_descriptors_are_closed() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = FdChannel(right)
    before = open_files()
    socket.send_fds(left, [b"junk"], [0, 1])
    with pytest.raises(CodecError):
        channel.recv()
    assert open_files() == before
    left.close()
    channel.close()


def test_more_descriptors_than_allowed_are_refused_and_closed() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = FdChannel(right)
    before = open_files()
    socket.send_fds(left, [encode(Shutdown())], [0] * MAX_FDS)
    _, fds = channel.recv()
    assert len(fds) == MAX_FDS
    for fd in fds:
        os.close(fd)
    socket.send_fds(left, [encode(Shutdown())], [0] * (MAX_FDS + 1))
    with pytest.raises(CodecError, match="cut short"):
        channel.recv()
    assert open_files() == before
    left.close()
    channel.close()


def test_waiting_on_a_loop_does_not_block_it(pair: tuple[FdChannel, FdChannel]) -> None:
    async def scenario() -> object:
        waiting = asyncio.ensure_future(pair[1].arecv())
        await asyncio.sleep(0)
        assert not waiting.done()
        await pair[0].asend(Shutdown())
        message, _ = await asyncio.wait_for(waiting, 5)
        return message

    assert asyncio.run(scenario()) == Shutdown()


def test_a_sender_on_a_loop_waits_while_the_socket_is_full(pair: tuple[FdChannel, FdChannel]) -> None:
    async def scenario() -> int:
        big = Failure("internal", "x" * 50_000)
        sending = asyncio.ensure_future(send_many(big))
        await asyncio.sleep(0)
        assert not sending.done()
        count = 0
        while count < 20:
            await asyncio.wait_for(pair[1].arecv(), 5)
            count += 1
        await sending
        return count

    async def send_many(message: Failure) -> None:
        for _ in range(20):
            await pair[0].asend(message)

    assert len(encode(Failure("internal", "x" * 50_000))) < MAX_MESSAGE_SIZE
    assert asyncio.run(scenario()) == 20
