"""One TCP connection through an engine, by frames made in a loop: what callgrind counts instructions on.

``python -m tests.perf.drive up|down MTU SEGMENTS`` carries that many full segments from the guest to a host socket, or
the other way, and prints the engine's counters as JSON. Everything happens in one thread and in a fixed order; the
payload is zeros, so that checksums are cheap to make where nothing is counted.
"""

from __future__ import annotations

import json
import socket
import struct
import sys

from worker.engine import Engine
from worker.upcalls import Action

GUEST_MAC, GATEWAY_MAC = bytes.fromhex("5a94efe40cee"), bytes.fromhex("5a94efe40cdd")
GUEST_IP, GATEWAY_IP, SUBNET = bytes([192, 168, 127, 2]), bytes([192, 168, 127, 1]), bytes([192, 168, 127, 0])
PEER_IP, LOOPBACK = bytes([203, 0, 113, 7]), bytes([127, 0, 0, 1])
GUEST_PORT, PEER_PORT = 40000, 80
BATCH = 65_536
"""Bytes that the guest sends before the engine runs: less than the window, more than one frame of any MTU."""
ACK_EVERY = 2
"""Segments (RFC 1122 4.2.3.2)."""
SYN, ACK = 2, 16
TIMESTAMP = bytes([1, 1, 8, 10]) + bytes(8)
"""RFC 7323; value and echo stay 0, which is in order."""
SYN_OPTIONS = bytes([2, 4, 0xFF, 0xFF, 4, 2, 8, 10]) + bytes(8) + bytes([1, 3, 3, 7])
"""Largest MSS, SACK permitted, timestamps, window scale 7, as a Linux guest would."""
SEQ_AT = 4 + 14 + 20 + 4
PAYLOAD_AT = 4 + 14 + 20 + 20 + len(TIMESTAMP)


def wide(v4: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + v4


def checksum(data: bytes) -> int:
    """RFC 1071; zeros after `data` would change nothing."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


class Drive:
    """The guest's end of the link, the host's end of the connection, and the engine between them."""

    def __init__(self, mtu: int) -> None:
        self.mss = mtu - 20 - 20 - len(TIMESTAMP)
        self.link, engine_end = socket.socketpair()
        for end in (self.link, engine_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 23)
        self.engine = Engine(
            engine_end.detach(), "stream32", mtu, GATEWAY_MAC, wide(GATEWAY_IP), wide(SUBNET), 120, guest_mac=GUEST_MAC
        )
        self._heard = b""
        self._next, self._expected = 1000, 0
        self.host = self._open()

    def _open(self) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.engine.set_verdict(socket.IPPROTO_TCP, wide(PEER_IP), PEER_PORT, Action.CARRY, wide(LOOPBACK), port)
            self.link.send(self.frame(SYN, options=SYN_OPTIONS))
            self._next += 1
            self.engine.run(0)
            host, _ = server.accept()
        self.engine.run(0)
        self._expected = struct.unpack_from("!I", self.link.recv(200), SEQ_AT)[0] + 1
        self.link.send(self.frame(ACK))
        self.engine.run(0)
        return host

    def frame(self, flags: int, length: int = 0, options: bytes = TIMESTAMP) -> bytes:
        """The guest's next segment, with `length` zeros, as it lies on the link."""
        tcp_length = 20 + len(options) + length
        pseudo = GUEST_IP + PEER_IP + struct.pack("!HH", socket.IPPROTO_TCP, tcp_length)
        offset = (20 + len(options)) // 4 << 4
        fields = (GUEST_PORT, PEER_PORT, self._next, self._expected if flags & ACK else 0, offset, flags, 65535)
        tcp = struct.pack("!HHIIBBH", *fields)
        tcp += struct.pack("!HH", checksum(pseudo + tcp + options), 0) + options
        ip = struct.pack("!BBHHHBB", 0x45, 0, 20 + tcp_length, 0, 0x4000, 64, socket.IPPROTO_TCP)
        ip += struct.pack("!H", checksum(ip + GUEST_IP + PEER_IP)) + GUEST_IP + PEER_IP
        ethernet = GATEWAY_MAC + GUEST_MAC + b"\x08\x00"
        return struct.pack("!I", len(ethernet) + len(ip) + tcp_length) + ethernet + ip + tcp + bytes(length)

    def up(self, segments: int) -> None:
        """From the guest to the host."""
        left = segments
        while left:
            batch = bytearray()
            while left and len(batch) < BATCH:
                batch += self.frame(ACK, self.mss)
                self._next += self.mss
                left -= 1
            self.link.sendall(batch)
            expected = len(batch) // (self.mss + PAYLOAD_AT) * self.mss
            self.engine.run(0)
            while expected:
                expected -= len(self.host.recv(expected))
            self._hear()

    def down(self, segments: int) -> None:
        """From the host to the guest, which acknowledges every second segment."""
        left = segments * self.mss
        unsent = left
        while left:
            if unsent:
                unsent -= self.host.send(bytes(min(unsent, BATCH)), socket.MSG_DONTWAIT)
            self.engine.run(0)
            left -= self._acknowledge()

    def _hear(self) -> bytes:
        """What came over the link, if anything did."""
        try:
            return self.link.recv(1 << 22, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def _acknowledge(self) -> int:
        """Take what came over the link; its payload's bytes."""
        self._heard += self._hear()
        taken = bytes_acked = pending = 0
        acks = bytearray()
        while len(self._heard) - taken > 4:
            length = 4 + int.from_bytes(self._heard[taken : taken + 4], "big")
            if length > len(self._heard) - taken:
                break
            taken += length
            payload = length - PAYLOAD_AT
            self._expected += payload
            bytes_acked += payload
            pending += payload > 0
            if pending == ACK_EVERY:
                acks += self.frame(ACK)
                pending = 0
        if pending:
            acks += self.frame(ACK)
        self._heard = self._heard[taken:]
        self.link.sendall(acks)
        return bytes_acked


def main(direction: str, mtu: str, segments: str) -> None:
    """Carry the segments, print the counters."""
    drive = Drive(int(mtu))
    {"up": drive.up, "down": drive.down}[direction](int(segments))
    print(json.dumps(drive.engine.counters()))
    drive.engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
