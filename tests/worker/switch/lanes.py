"""Workers played by the test that know of lanes, and what goes through one."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Callable
from functools import partial

import dpkt

from tests.worker import vnet
from tests.worker.framebed import attempt
from tests.worker.switch.lan import Port, Worker
from tests.worker.switch.test_offloads import MSS, OFFLOADED, TCP_CHECKSUM, tcp

PAGE, RING = 4096, 1 << 20
START = 2**32 - RING // 2
"""The first position."""
IN_LANE = 0x02000000
MAC, IP = b"\x52\x54\0\0\0\x09", "192.168.127.9"
REFERENCE_LEN = 12
HEAD = 256
FRAME = 60_066
"""Of a packet with 60,000 bytes of payload, without what is before it."""


def long_message(sender: Port, to: Port | Worker, payload: bytes) -> bytes:
    """A TCP packet of many segments, behind its virtio_net_hdr."""
    if isinstance(to, Port):
        return vnet.partial(tcp(sender, to, payload), TCP_CHECKSUM, MSS)
    other = Port.__new__(Port)
    other.mac, other.ip = to.mac, socket.inet_ntoa(to.ip)
    return vnet.partial(tcp(sender, other, payload), TCP_CHECKSUM, MSS)


def batch(*messages: bytes) -> bytes:
    """As it lies in a datagram or in the ring."""
    return b"".join((len(message) | OFFLOADED).to_bytes(4, "big") + message for message in messages)


class Lane:
    """The test's mapping of a ring."""

    def __init__(self, fd: int, port: Port) -> None:
        self.memory = mmap.mmap(fd, PAGE + RING)
        os.close(fd)
        port.on_close(self.memory.close)

    @property
    def position(self) -> int:
        """How far the receiver is done."""
        return int.from_bytes(self.memory[:4], "little")

    @position.setter
    def position(self, value: int) -> None:
        self.memory[:4] = value.to_bytes(4, "little")

    def at(self, offset: int, size: int) -> bytes:
        return self.memory[PAGE + offset : PAGE + offset + size]

    def put(self, offset: int, data: bytes) -> None:
        self.memory[PAGE + offset : PAGE + offset + len(data)] = data


class Receiver(Worker):
    """A worker played by the test that is sent long batches."""

    def __init__(self, port: Port) -> None:
        super().__init__(port, MAC, IP)
        self.port = port
        self.lane: Lane
        self.lanes = 0

    def batches(self) -> list[tuple[bytes, int]]:
        """What waits: each batch, and the position behind it (-1: it came by the socket)."""
        return [(read(), position) for read, position in self.arrivals()]

    def arrivals(self) -> list[tuple[Callable[[], bytes], int]]:
        """The same, each to be read when the test wants it."""
        found: list[tuple[Callable[[], bytes], int]] = []
        while got := attempt(lambda: socket.recv_fds(self.sock, 1 << 18, 2)):
            data, fds, _, _ = got
            if fds:
                (fd,) = fds
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                assert seals & fcntl.F_SEAL_SHRINK, "who is sent it may rely on it"
                self.lane = Lane(fd, self.port)
                self.lanes += 1
            elif len(data) == REFERENCE_LEN:
                offset, size, position = (int.from_bytes(data[i : i + 4], "big") for i in (0, 4, 8))
                found.append((partial(self.lane.at, offset, size), position))
            else:
                found.append((partial(bytes, data), -1))
        return found


class Sender(Worker):
    """A worker played by the test that has a ring."""

    def __init__(self, port: Port) -> None:
        super().__init__(port, MAC, IP)
        self.port = port
        self.lane: Lane

    def offer_lane(self, size: int = PAGE + RING, seals: int = fcntl.F_SEAL_SHRINK) -> None:
        fd = os.memfd_create("lane", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        try:
            socket.send_fds(self.sock, [b"\0"], [fd])
            if size == PAGE + RING:
                self.lane = Lane(os.dup(fd), self.port)
        finally:
            os.close(fd)

    def refer(self, offset: int, size: int, position: int = 0) -> None:
        self.sock.send(b"".join(value.to_bytes(4, "big") for value in (offset, size, position)))

    def fill_link(self, message: bytes) -> int:
        """Send it by the ring until the link, which nobody reads, is full; how often."""
        self.lane.put(0, batch(message))
        self.port.reading = False
        sent = 0
        while not self.port.counter("link.blocked"):
            self.refer(0, len(batch(message)))
            sent += 1
            self.port.turn()
        return sent

    def message(self, to: Port, payload: bytes) -> bytes:
        """A long message of this VM."""
        packet = tcp(to, to, payload)
        packet = packet[:6] + self.mac + packet[12:24] + bytes(2) + self.ip + packet[30:]
        packet = packet[:24] + dpkt.in_cksum(packet[14:34]).to_bytes(2, "big") + packet[26:]
        return vnet.partial(packet, TCP_CHECKSUM, MSS)
