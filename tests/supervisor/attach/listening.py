"""A listener on a running loop, and clients that say to it what they like."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from supervisor.attach.listener import Attachment, Host, Listener

MTU = 1500
MAC = "5a:94:ef:e4:0c:ee"
PATIENCE = 10.0


@dataclass
class Bed:
    """What a listener made of its clients."""

    attached: asyncio.Queue[Attachment] = field(default_factory=asyncio.Queue)
    uuids: list[str] = field(default_factory=list)

    def mac_of_uuid(self, uuid: str) -> str:
        self.uuids.append(uuid)
        return MAC

    async def attachment(self) -> Attachment:
        """The next VM."""
        return await asyncio.wait_for(self.attached.get(), PATIENCE)


@contextlib.asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[Bed]:
    bed = Bed()
    listener.start(Host(bed.attached.put_nowait, MTU, bed.mac_of_uuid))
    try:
        yield bed
    finally:
        listener.close()
        while not bed.attached.empty():
            bed.attached.get_nowait().link.close()
        await asyncio.sleep(0)  # handshakes that were cancelled close their sockets


@dataclass
class Client:
    """One connection."""

    sock: socket.socket

    @classmethod
    async def connect(cls, path: str) -> Client:
        """To a unix socket."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, path)
        return cls(sock)

    async def say(self, data: bytes, piece: int = 1 << 20) -> None:
        """Send, in pieces of that size, each after the other has been read."""
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), piece):
            await loop.sock_sendall(self.sock, data[at : at + piece])
            for _ in range(3):
                await asyncio.sleep(0)

    async def hear(self, size: int) -> bytes:
        """That many bytes, fewer at the end."""
        loop = asyncio.get_running_loop()
        heard = b""
        async with asyncio.timeout(PATIENCE):
            while len(heard) < size:
                data = await loop.sock_recv(self.sock, size - len(heard))
                if not data:
                    break
                heard += data
        return heard

    async def is_dropped(self) -> bool:
        """Wait until the other end hangs up; what it said before is thrown away."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while await loop.sock_recv(self.sock, 4096):
                    pass
        return True

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
