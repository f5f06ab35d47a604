"""Several engines on one network, each with the guest's end of its link in the hands of the test."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import dpkt

from tests.worker.framebed import BROADCAST, DEADLINE, GATEWAY_MAC, Bed, attempt, ethernet, open_descriptors, v4, wide
from worker.addr import pack_ipv4

SOCKET_BUFFER = 1 << 20


class Port(Bed):
    """The engine of one VM; frames of other VMs are kept apart from those of the gateway."""

    def __init__(self, number: int, link: str, readiness: str, port_security: bool, mtu: int) -> None:
        super().__init__(link, readiness, mtu)
        self.number = number
        self.mac = bytes.fromhex(f"5254000000{number:02x}")
        self.ip = f"192.168.127.{number + 1}"
        self.delivered: list[bytes] = []
        self.engine.join_switch(port_security)
        self.engine.set_guest(self.mac, [wide(self.ip)])

    def take(self, frame: bytes) -> None:
        if frame[6:12] == GATEWAY_MAC:
            super().take(frame)
        else:
            self.delivered.append(frame)

    def marker(self, number: int) -> bytes:
        return GATEWAY_MAC + self.arp(socket.inet_ntoa(number.to_bytes(4, "big")))[6:]

    def frame(self, dst: bytes, payload: bytes = bytes(50), kind: int = 0x88B5) -> bytes:
        """From this VM's MAC; IEEE's EtherType for experiments unless it says otherwise."""
        return ethernet(payload, kind, src=self.mac, dst=dst)

    def ipv4(self, dst: Port, payload: bytes, src: str = "", proto: int = 253) -> bytes:
        """A packet of this VM to another, its address its own unless it says otherwise."""
        ip = dpkt.ip.IP(src=v4(src or self.ip), dst=v4(dst.ip), p=proto, ttl=64, data=payload)
        ip.len = len(ip)
        return self.frame(dst.mac, bytes(ip), 0x0800)

    def arp(self, target: str, *, sender_ip: str = "", sender_mac: bytes = b"", op: int = 1) -> bytes:
        """An ARP packet of this VM to all, that tells the truth unless it says otherwise."""
        arp = dpkt.arp.ARP(op=op, sha=sender_mac or self.mac, spa=v4(sender_ip or self.ip), tpa=v4(target))
        return self.frame(BROADCAST, bytes(arp), 0x0806)


class Lan:
    """Ports that are all connected with each other."""

    def __init__(
        self, count: int, links: Sequence[str] = ("stream32",), *, readiness: str = "epoll",
        port_security: bool = True, mtu: int = 1500,
    ) -> None:  # fmt: skip
        self._descriptors = open_descriptors()
        self.ports = [
            Port(number, links[(number - 1) % len(links)], readiness, port_security, mtu)
            for number in range(1, count + 1)
        ]
        for index, one in enumerate(self.ports):
            for other in self.ports[index + 1 :]:
                connect(one, other)

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Drive all engines until the condition is true."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, [port.changed() for port in self.ports]
            for port in self.ports:
                port.turn()

    def settle(self) -> None:
        """Until what the guests have sent has arrived wherever it goes."""
        for port in self.ports:
            port.settle()
        for _ in range(3):
            for port in self.ports:
                port.turn()

    def close(self) -> None:
        """End everything and hold the engines to leaving nothing open."""
        for port in self.ports:
            port.end()
        assert open_descriptors() == self._descriptors, "descriptors were left open"


def connect(one: Port, other: Port, socket_buffer: int = SOCKET_BUFFER) -> None:
    """What the supervisor does with two workers."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end, at, peer in zip(pair, (one, other), (other, one), strict=True):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, socket_buffer)
        at.engine.add_peer(peer.number, end.detach(), peer.mac, [wide(peer.ip)])


@contextlib.contextmanager
def lan(count: int, links: Sequence[str] = ("stream32",), **options: object) -> Iterator[Lan]:
    """A network for the length of a block; it holds every engine to leaving no descriptor open."""
    network = Lan(count, links, **options)  # type: ignore[arg-type]
    try:
        yield network
    finally:
        network.close()


class Worker:
    """A worker played by the test: the other end of a peer's socket."""

    def __init__(self, port: Port, mac: bytes, ip: str) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self.sock.setblocking(False)
        self.mac, self.ip = mac, pack_ipv4(ip)
        port.keep(self.sock)
        port.engine.add_peer(99, theirs.detach(), mac, [wide(ip)])

    def send(self, *frames: bytes) -> None:
        """Frames in one datagram."""
        self.sock.send(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def heard(self) -> list[bytes]:
        """The datagrams that wait."""
        datagrams = []
        while datagram := attempt(lambda: self.sock.recv(1 << 18)):
            datagrams.append(datagram)
        return datagrams
