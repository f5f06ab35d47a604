import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from proto.errors import RequestFailed
from proto.fdpass import FdChannel
from proto.messages import AttachLink, Empty, Failure, ListVms
from supervisor import handover
from supervisor.handover import Handover

LINK = AttachLink("stream16", "default", b"first")


def serve(path: Path, play: Callable[[list[bytes]], Awaitable[None]]) -> None:
    """Run a scenario beside a server that writes down what its connections say, and refuses network ``none``."""

    async def scenario() -> None:
        said: list[bytes] = []

        def take(message: AttachLink, fd: int) -> None:
            if message.network == "none":
                raise RequestFailed.because("not-found", "no such network")
            said.append(message.first_bytes + os.read(fd, 99))

        server = Handover(path / "handover.sock", {AttachLink: take})
        try:
            await play(said)
        finally:
            await server.close()

    asyncio.run(scenario())


async def dial(path: Path) -> FdChannel:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(path / "handover.sock"))
    return FdChannel(sock)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_connection_is_taken_and_the_descriptor_closed(tmp_path: Path) -> None:
    async def play(said: list[bytes]) -> None:
        ours, theirs = socket.socketpair()
        ours.send(b" and more")
        channel = await dial(tmp_path)
        before = descriptors()
        await channel.asend(LINK, [theirs.fileno()])
        assert await channel.arecv() == (Empty(), [])
        assert said == [b"first and more"]
        with pytest.raises(EOFError):
            await channel.arecv()
        assert descriptors() == before
        for end in (ours, theirs, channel):
            end.close()

    serve(tmp_path, play)


@pytest.mark.parametrize(
    ("message", "count", "answer"),
    [
        (AttachLink("stream16", "none"), 1, Failure("not-found", "no such network")),
        (LINK, 0, Failure("bad-request", "AttachLink with 0 descriptors is no handover")),
        (LINK, 2, Failure("bad-request", "AttachLink with 2 descriptors is no handover")),
        (ListVms(), 1, Failure("bad-request", "ListVms with 1 descriptors is no handover")),
    ],
)
def test_anything_else_is_refused_and_its_descriptors_closed(
    tmp_path: Path, message: object, count: int, answer: Failure
) -> None:
    async def play(said: list[bytes]) -> None:
        ours, theirs = socket.socketpair()
        channel = await dial(tmp_path)
        await channel.asend(message, [theirs.fileno()] * count)
        theirs.close()
        assert await channel.arecv() == (answer, [])
        ours.settimeout(5)
        assert ours.recv(1) == b""
        assert not said
        ours.close()
        channel.close()

    serve(tmp_path, play)


def test_junk_and_silence_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handover, "PATIENCE", 0.1)

    async def play(_: list[bytes]) -> None:
        silent, junk = await dial(tmp_path), await dial(tmp_path)
        os.write(junk.fileno(), b"junk")
        for channel in (silent, junk):
            with pytest.raises(EOFError):
                await channel.arecv()
            channel.close()

    serve(tmp_path, play)
    assert sorted(record.getMessage().rsplit(": ", 1)[1] for record in caplog.records) == [
        "it was not done in 0.1 s",
        "unpack(b) received extra data.",
    ]
