"""A real engine between a guest made of frames and real sockets of the host.

The test holds the guest's end of the link and speaks Ethernet over it. Every frame that comes from the engine is
checked on arrival: its length, MACs, IPv4 header and checksums. Nothing here sleeps: `run_until` drives the engine
until a condition holds, `settle` until everything sent so far has been handled.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from itertools import count, pairwise
from typing import Any, TypeVar

import dpkt

from tests.worker import vnet
from worker.addr import pack_ipv4, widen
from worker.engine import Engine
from worker.upcalls import Action, Upcall

GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xee"
GATEWAY_MAC = b"\x5a\x94\xef\xe4\x0c\xdd"
BROADCAST = b"\xff" * 6
GUEST_IP = "192.168.127.2"
GATEWAY_IP = "192.168.127.1"
REMOTE_IP = "203.0.113.7"
"""Somewhere outside; verdicts lead it to 127.0.0.1."""
TCP, UDP, ICMP = 6, 17, 1
SOCKET_BUFFER = 262144
LINKS = {
    "stream32": ("stream32", socket.SOCK_STREAM),
    "stream16": ("stream16", socket.SOCK_STREAM),
    "seqpacket": ("messages", socket.SOCK_SEQPACKET),
    "datagram": ("messages", socket.SOCK_DGRAM),
    "tap": ("tap", socket.SOCK_SEQPACKET),
    "tap-vnet": ("tap-vnet", socket.SOCK_SEQPACKET),
}
"""The engine's framing, and the type of socket, for each form of link; a SEQPACKET socket stands in for the device."""
DEADLINE = 5.0
"""Seconds until a condition that does not come about fails the test."""

T = TypeVar("T")


def v4(address: str) -> bytes:
    return pack_ipv4(address)


def wide(address: str) -> bytes:
    """An address as the engine takes it."""
    return widen(pack_ipv4(address))


def ethernet(payload: bytes, kind: int = 0x0800, *, src: bytes = GUEST_MAC, dst: bytes = GATEWAY_MAC) -> bytes:
    return dst + src + kind.to_bytes(2, "big") + payload


def ipv4(payload: Any, dst: str = REMOTE_IP, *, proto: int, src: str = GUEST_IP, **fields: Any) -> bytes:
    """A frame with a datagram of the guest; checksums that are left 0 are filled in."""
    ip = dpkt.ip.IP(src=v4(src), dst=v4(dst), p=proto, ttl=64, data=payload)
    ip.len = len(ip)
    for name, value in fields.items():
        setattr(ip, name, value)
    return ethernet(bytes(ip))


def udp(payload: bytes, dport: int, dst: str = REMOTE_IP, *, sport: int = 5000, **ip_fields: Any) -> bytes:
    datagram = dpkt.udp.UDP(sport=sport, dport=dport, data=payload)
    datagram.ulen = len(datagram)
    return ipv4(datagram, dst, proto=UDP, **ip_fields)


def fragments(frame: bytes, *cuts: int, ident: int = 77) -> list[bytes]:
    """The datagram of a frame cut at the given offsets of its payload, multiples of 8."""
    payload = frame[34:]
    edges = [0, *cuts, len(payload)]
    return [
        fragment(payload[start:end], start, end != len(payload), proto=frame[23], ident=ident)
        for start, end in pairwise(edges)
    ]


def fragment(piece: bytes, offset: int, more: bool, *, proto: int = UDP, ident: int = 77) -> bytes:
    header = bytearray(bytes(dpkt.ip.IP(src=v4(GUEST_IP), dst=v4(REMOTE_IP), p=proto, ttl=64, id=ident)))
    header[2:4] = (20 + len(piece)).to_bytes(2, "big")
    header[6:8] = ((offset >> 3) | (0x2000 if more else 0)).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = dpkt.in_cksum(bytes(header)).to_bytes(2, "big")
    return ethernet(bytes(header) + piece)


def arp(number: int = 0) -> bytes:
    """An ARP request, told apart by `number`."""
    request = dpkt.arp.ARP(sha=GUEST_MAC, spa=v4(GUEST_IP), tpa=number.to_bytes(4, "big"))
    return ethernet(bytes(request), 0x0806, dst=BROADCAST)


def check(frame: bytes, mtu: int) -> Any:
    """A frame from the engine, taken apart; fails if anything about it is wrong."""
    assert len(frame) <= mtu + 14, f"a frame of {len(frame)} bytes on a link with MTU {mtu}"
    assert frame[6:12] == GATEWAY_MAC
    ethernet_frame = dpkt.ethernet.Ethernet(frame)
    if frame[12:14] != b"\x08\0":
        return ethernet_frame
    header = frame[14:34]
    assert header[0] == 0x45
    assert dpkt.in_cksum(header) == 0
    assert int.from_bytes(header[2:4], "big") == len(frame) - 14
    if int.from_bytes(header[6:8], "big") & 0x3FFF == 0:
        payload = frame[34:]
        pseudo = header[12:20] + bytes([0, header[9]]) + len(payload).to_bytes(2, "big")
        assert dpkt.in_cksum(payload if header[9] == ICMP else pseudo + payload) == 0, "a bad checksum from the engine"
    return ethernet_frame


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Bed:
    """One engine, its guest's end of the link, and the host's sockets."""

    def __init__(
        self, link: str = "stream32", readiness: str = "epoll", mtu: int = 1500, *, resync: bool = False,
        guest_mac: bytes = b"", udp_idle: float = 180.0,
    ) -> None:  # fmt: skip
        self._descriptors = open_descriptors()
        (self.framing, kind), self.mtu = LINKS[link], mtu
        self.link, engine_end = socket.socketpair(socket.AF_UNIX, kind)
        for end in (self.link, engine_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self.link.setblocking(False)
        self.engine_fd = engine_end.detach()
        """The other end's descriptor, the engine's own."""
        self.engine = Engine(
            self.engine_fd, self.framing, mtu, GATEWAY_MAC, wide(GATEWAY_IP), wide("192.168.127.0"), 120,
            resync=resync, guest_mac=guest_mac, readiness=readiness, udp_idle=udp_idle,
        )  # fmt: skip
        self.inbox: list[Any] = []
        """Frames from the engine that no `expect` has taken yet."""
        self.upcalls: list[tuple[Any, ...]] = []
        self.reading = True
        self._received = b""
        self._stack = contextlib.ExitStack()
        self._markers = count(0xE0000001)

    def close(self) -> None:
        """Ends everything and holds the engine to leaving nothing open."""
        self.end()
        assert open_descriptors() == self._descriptors, "descriptors were left open"

    def end(self) -> None:
        """Ends everything."""
        self.engine.close()
        for upcall in self.upcalls:
            if upcall[0] == Upcall.STREAM:
                os.close(upcall[1])
        self.link.close()
        self._stack.close()

    # --- the guest's side

    @property
    def is_stream(self) -> bool:
        return self.framing in ("stream32", "stream16")

    def wire(self, *frames: bytes) -> bytes:
        """Frames as they lie on a stream link."""
        if self.framing == "stream32":
            return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
        return b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames)

    def send(self, *frames: bytes) -> None:
        """Put frames on the link, all of them, while the engine works."""
        if self.is_stream:
            self.push(self.wire(*frames))
            return
        for message in self.messages(*frames):
            while attempt(partial(self.link.send, message)) is None:
                self.turn()

    def offer(self, *frames: bytes) -> None:
        """Put a few frames on the link before the engine's next turn."""
        for message in (self.wire(*frames),) if self.is_stream else self.messages(*frames):
            self.link.send(message)

    def messages(self, *frames: bytes) -> list[bytes]:
        """Frames as they lie on any other link."""
        return [vnet.PLAIN + frame for frame in frames] if self.framing == "tap-vnet" else list(frames)

    def push(self, data: bytes) -> None:
        """Put bytes on a stream link, all of them."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.link.send(view) :]
            except BlockingIOError:
                self.turn()

    def turn(self, timeout: float = 0) -> None:
        """Let the engine work once, and take what it has for the guest and for Python."""
        self.engine.run(timeout)
        self.upcalls += self.engine.take_upcalls()
        if self.reading:
            self.read()

    def read(self) -> None:
        """Take what the engine has sent."""
        if not self.is_stream:
            while message := attempt(lambda: self.link.recv(1 << 18)):
                for frame in vnet.frames(message) if self.framing == "tap-vnet" else [message]:
                    self.take(frame)
            return
        with contextlib.suppress(BlockingIOError):
            while data := self.link.recv(1 << 18):
                self._received += data
        prefix = 4 if self.framing == "stream32" else 2
        at = 0
        while len(self._received) - at >= prefix:
            length = int.from_bytes(self._received[at : at + prefix], "big" if prefix == 4 else "little")
            assert 14 <= length <= 65549, f"the engine sent a frame length of {length}"
            if len(self._received) - at - prefix < length:
                break
            self.take(self._received[at + prefix : at + prefix + length])
            at += prefix + length
        self._received = self._received[at:]

    def take(self, frame: bytes) -> None:
        """A frame has come to the guest."""
        self.inbox.append(check(frame, self.mtu))

    def run_until(self, condition: Callable[[], T | None]) -> T:
        """Drive the engine until the condition is true; what it returned."""
        deadline = time.monotonic() + DEADLINE
        while not (result := condition()):
            assert time.monotonic() < deadline, f"waited in vain; counters: {self.changed()}"
            self.turn(0.001)
        return result

    def settle(self) -> None:
        """Return when all that was sent has been handled: a marker sent after it has come through."""
        marker = self.marker(next(self._markers))
        self.send(marker)
        self.run_until(lambda: (Upcall.FRAME, marker) in self.upcalls)
        self.upcalls.remove((Upcall.FRAME, marker))
        self.turn()
        self.turn()

    def marker(self, number: int) -> bytes:
        """A frame that comes up to Python, told apart by its number."""
        return arp(number)

    def expect(self, match: Callable[[Any], bool]) -> Any:
        """The first IP packet (or other Ethernet payload) from the engine that matches, taken out of the inbox."""

        def found() -> Any:
            for i, frame in enumerate(self.inbox):
                if match(frame.data):
                    return self.inbox.pop(i).data
            return None

        return self.run_until(found)

    def expect_icmp(self, kind: int, code: int) -> tuple[str, bytes]:
        """Who sent an ICMP error of that type and code to the guest, and about which packet (its first bytes)."""
        packet = self.expect(lambda ip: isinstance(getattr(ip, "icmp", None), dpkt.icmp.ICMP))
        assert (packet.icmp.type, packet.icmp.code) == (kind, code)
        assert socket.inet_ntoa(packet.dst) == GUEST_IP
        return socket.inet_ntoa(packet.src), bytes(packet.icmp)[8:]

    def expect_udp(self, dport: int = 5000) -> tuple[str, int, bytes]:
        """Source address, port and payload of the next whole datagram to the guest's port."""
        packet = self.expect(lambda ip: isinstance(getattr(ip, "udp", None), dpkt.udp.UDP) and ip.udp.dport == dport)
        return socket.inet_ntoa(packet.src), packet.udp.sport, bytes(packet.udp.data)

    def expect_upcall(self, kind: Upcall) -> tuple[Any, ...]:
        """The oldest upcall of that kind, taken."""
        chosen = self.run_until(lambda: next((upcall for upcall in self.upcalls if upcall[0] == kind), None))
        self.upcalls.remove(chosen)
        return chosen

    def frames_up(self) -> list[bytes]:
        """The frames that have come up to Python, taken."""
        frames = [upcall[1] for upcall in self.upcalls if upcall[0] == Upcall.FRAME]
        self.upcalls = [upcall for upcall in self.upcalls if upcall[0] != Upcall.FRAME]
        return frames

    # --- the host's side

    def tcp_server(self, backlog: int = 16) -> socket.socket:
        return self.keep(socket.create_server(("127.0.0.1", 0), backlog=backlog))

    def udp_server(self) -> socket.socket:
        server = self.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        return server

    def on_close(self, callback: Callable[[], None]) -> None:
        """To be called when the bed is closed."""
        self._stack.callback(callback)

    def keep(self, sock: socket.socket) -> socket.socket:
        """A socket to be closed with the bed; non-blocking."""
        self.on_close(sock.close)
        sock.setblocking(False)
        return sock

    def accept(self, server: socket.socket) -> socket.socket:
        return self.keep(self.run_until(lambda: attempt(lambda: server.accept()[0])))

    def connect(self, port: int) -> socket.socket:
        """A client of the host on its way to a port of 127.0.0.1."""
        client = self.keep(socket.socket())
        client.connect_ex(("127.0.0.1", port))
        return client

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """Exactly `size` bytes from a host's stream socket."""
        data = bytearray()

        def complete() -> bool:
            piece = attempt(lambda: sock.recv(size - len(data)))
            assert piece != b"", f"the host saw the end of the stream after {len(data)} of {size} bytes"
            data.extend(piece or b"")
            return len(data) == size

        self.run_until(complete)
        return bytes(data)

    def receive_from(self, sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
        return self.run_until(lambda: attempt(lambda: sock.recvfrom(65536)))

    def at_end(self, sock: socket.socket) -> bool:
        """Whether the host sees the end of the stream, now and with nothing before it."""
        return attempt(lambda: sock.recv(1)) == b""

    def is_reset(self, sock: socket.socket) -> bool:
        try:
            sock.recv(1)
        except ConnectionResetError:
            return True
        except BlockingIOError:
            return False
        return False

    # --- the control side

    def allow(self, proto: int, port: int, dst: str = REMOTE_IP, dport: int = 80) -> None:
        """Lead a destination of the guest to a port of 127.0.0.1."""
        self.engine.set_verdict(proto, wide(dst), dport, Action.CARRY, wide("127.0.0.1"), port)

    def judge(self, proto: int, action: Action, dst: str = REMOTE_IP, dport: int = 80) -> None:
        self.engine.set_verdict(proto, wide(dst), dport, action)

    def forward(self, proto: int, guest_port: int, forward_id: int = 1) -> int:
        """A forwarded port to the guest; the host's port."""
        kind = socket.SOCK_STREAM if proto == TCP else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as listener:
            listener.bind(("127.0.0.1", 0))
            if proto == TCP:
                listener.listen()
            port: int = listener.getsockname()[1]
            self.engine.add_listener(forward_id, listener.detach(), proto, wide(GUEST_IP), guest_port)
        return port

    def counter(self, name: str) -> int:
        return self.engine.counters()[name]

    def changed(self) -> dict[str, int]:
        """Every counter that is not zero."""
        return {name: value for name, value in self.engine.counters().items() if value}


def attempt(action: Callable[[], T]) -> T | None:
    """What a non-blocking call returned; None: it would have blocked."""
    try:
        return action()
    except BlockingIOError:
        return None
