"""Messages with file descriptors attached, over a unix SEQPACKET socket.

One message is one packet: the codec's bytes, its descriptors as SCM_RIGHTS beside them (unix(7)). Descriptors arrive
close-on-exec. A packet that is cut short, carries too many descriptors or no valid message is refused with
`CodecError`, and whatever descriptors came with it are closed.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from proto.codec import MAX_MESSAGE_SIZE, Message, decode, encode
from proto.errors import CodecError

MAX_FDS = 8
"""Descriptors beside one message."""
_FD_SIZE = array.array("i").itemsize
_CMSG_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class FdChannel:
    """One end of a socket that carries messages and descriptors.

    Owns its socket. `send` and `recv` block; `asend` and `arecv` wait on the running loop instead, whatever the
    socket's mode. One task or thread at a time may read, and one may write.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[FdChannel, FdChannel]:
        """Two connected ends."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(left), cls(right)

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._sock.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message and duplicates of `fds`. Raises CodecError when too large, OSError when the peer is gone."""
        self._send(encode(message), fds, 0)

    def recv(self) -> tuple[Message, list[int]]:
        """The next message and its descriptors, now the caller's. Raises EOFError at the end, CodecError on junk."""
        return self._recv(0)

    async def asend(self, message: Message, fds: Sequence[int] = ()) -> None:
        """`send`, waiting on the running loop."""
        data = encode(message)
        while True:
            try:
                return self._send(data, fds, socket.MSG_DONTWAIT)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_writer, loop.remove_writer)

    async def arecv(self) -> tuple[Message, list[int]]:
        """`recv`, waiting on the running loop."""
        while True:
            try:
                return self._recv(socket.MSG_DONTWAIT)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_reader, loop.remove_reader)

    def close(self) -> None:
        """Close the socket; the other end reads EOF."""
        self._sock.close()

    def _send(self, data: bytes, fds: Sequence[int], flags: int) -> None:
        assert len(fds) <= MAX_FDS, fds
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([data], ancillary, flags)

    def _recv(self, flags: int) -> tuple[Message, list[int]]:
        space = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)
        try:
            data, ancillary, msg_flags, _ = self._sock.recvmsg(MAX_MESSAGE_SIZE, space, flags | _CMSG_CLOEXEC)
        except ConnectionResetError as error:
            raise EOFError("the other end is gone") from error
        fds = _descriptors(ancillary)
        try:
            if not data:
                raise EOFError("the other end is gone")
            if msg_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise CodecError("message cut short")
            return decode(data).message, fds
        except (EOFError, CodecError):
            for fd in fds:
                os.close(fd)
            raise

    async def _ready(self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]) -> None:
        """Wait until the loop says that the socket is ready."""
        ready = asyncio.get_running_loop().create_future()
        fd = self._sock.fileno()
        if fd < 0:
            raise EOFError("closed at this end")
        add(fd, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            remove(fd)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(fds)
