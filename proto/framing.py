"""Ethernet frames on a byte stream: a length before each frame.

Two framings: ``stream32``, 4 bytes big-endian (QEMU's ``-netdev stream`` and ``socket``, passt), and ``stream16``,
2 bytes little-endian (Hyperkit, VPNKit, vsock, stdio). Both classes hand out views of a buffer they keep, so that
frames move between a device and a socket without being copied or allocated. Standard library only, Python 3.9+: the
agent runs where nothing else is installed. The worker has its own codec in Cython.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

HEADERS = {"stream32": struct.Struct(">I"), "stream16": struct.Struct("<H")}
"""The length field of each framing."""

MAX_FRAME_SIZE = 131_072
"""Bytes; more than any MTU needs, so that a longer length says: this is no frame boundary."""

BATCH_SIZE = 262_144
"""Bytes moved by one system call, at most."""


class FramingError(ValueError):
    """The stream's next length cannot be one: where frames begin is lost, and the link with it."""


def pack(frame: bytes, framing: str = "stream32") -> bytes:
    """`frame` as it travels on the stream."""
    return HEADERS[framing].pack(len(frame)) + frame


class FrameReader:
    """Cuts a received byte stream into frames."""

    def __init__(self, framing: str = "stream32") -> None:
        self._header = HEADERS[framing]
        self._buffer = memoryview(bytearray(BATCH_SIZE + MAX_FRAME_SIZE))
        self._filled = 0

    def space(self) -> memoryview:
        """Where the next bytes go: ``received(sock.recv_into(reader.space()))``."""
        return self._buffer[self._filled :]

    def received(self, size: int) -> Iterator[memoryview]:
        """The frames that `size` more bytes complete; each view holds until the next call of `space`.

        Must be run to its end. Raises FramingError.
        """
        buffer, unpack_from, header_size = self._buffer, self._header.unpack_from, self._header.size
        position, end = 0, self._filled + size
        while end - position >= header_size:
            (length,) = unpack_from(buffer, position)
            if length > MAX_FRAME_SIZE:
                raise FramingError(f"frame length {length} is over the limit of {MAX_FRAME_SIZE}")
            start = position + header_size
            if length > end - start:
                break
            position = start + length
            yield buffer[start:position]
        self._filled = end - position
        if position:
            buffer[: self._filled] = bytes(buffer[position:end])

    def rest(self) -> bytes:
        """What was received and is no whole frame yet."""
        return bytes(self._buffer[: self._filled])


class FrameBatch:
    """Collects frames to be sent by one system call."""

    def __init__(self, framing: str = "stream32") -> None:
        self._header = HEADERS[framing]
        self._longest = min(MAX_FRAME_SIZE, 256**self._header.size - 1)
        self._buffer = memoryview(bytearray(BATCH_SIZE + MAX_FRAME_SIZE + self._header.size))
        self._start = self._end = 0

    def __bool__(self) -> bool:
        """Whether anything waits to be sent."""
        return self._end > self._start

    def fill(self, readv: Callable[[list[memoryview]], int]) -> None:
        """Take frames until `readv` raises BlockingIOError or the batch is full.

        `readv` puts one frame into the buffer it gets, and says how long it is: ``partial(os.readv, tap)``. A frame
        whose length the framing cannot say is left out.
        """
        buffer, pack_into, header_size, longest = self._buffer, self._header.pack_into, self._header.size, self._longest
        end = self._end
        try:
            while end < BATCH_SIZE:
                start = end + header_size
                size = readv([buffer[start:]])
                if size <= longest:
                    pack_into(buffer, end, size)
                    end = start + size
        except BlockingIOError:
            pass
        finally:
            self._end = end

    def unsent(self) -> memoryview:
        """The bytes that wait to be sent."""
        return self._buffer[self._start : self._end]

    def sent(self, size: int) -> None:
        """Forget the first `size` bytes of `unsent`."""
        self._start += size
        if self._start == self._end:
            self._start = self._end = 0
