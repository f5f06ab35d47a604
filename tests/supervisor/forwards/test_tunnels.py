"""What becomes of a connection that the API server hands over as a tunnel."""

import asyncio
import os
import socket
from typing import Any, cast

import pytest

from proto.messages import OpenTunnel
from supervisor.forwards.table import Forwards
from supervisor.forwards.tunnels import Tunnels


class OneVm:
    """Answers calls to 192.168.127.2 itself."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def call(self, network: str, host: str, port: int, fd: int, *, first_bytes: bytes) -> bool:
        self.called.set()
        if (network, host) != ("default", "192.168.127.2"):
            return False
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.send(b" from port %d after %s" % (port, first_bytes))
        return True


@pytest.mark.parametrize(
    ("wanted", "heard"),
    [
        (OpenTunnel("192.168.127.2", 22, first_bytes=b"early"), b"OK from port 22 after early"),
        (OpenTunnel("192.168.127.3", 22), b"OK"),
        (OpenTunnel("192.168.127.2", 22, "lab"), b"OK"),
    ],
)
def test_ok_comes_first_and_the_end_when_nobody_is_there(wanted: OpenTunnel, heard: bytes) -> None:
    async def scenario() -> None:
        vm: Any = OneVm()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                Tunnels(cast("Forwards", vm)).take(wanted, theirs.fileno())
            ours.setblocking(False)
            data = b""
            while piece := await asyncio.get_running_loop().sock_recv(ours, 100):
                data += piece
            assert data == heard

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_who_hung_up_meanwhile_does_no_harm() -> None:
    async def scenario() -> None:
        vm: Any = OneVm()
        tunnels = Tunnels(cast("Forwards", vm))
        ours, theirs = socket.socketpair()
        with theirs:
            ours.close()
            tunnels.take(OpenTunnel("192.168.127.9", 22), theirs.fileno())
        await vm.called.wait()

    asyncio.run(asyncio.wait_for(scenario(), 5))
