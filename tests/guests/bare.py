"""A guest without a machine: a socket that speaks frames. For numbers of VMs, and for frames no kernel would send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import inet_aton, inet_ntoa
from typing import Self

import dpkt
from dpkt.ethernet import ETH_TYPE_IP

from proto.framing import FrameReader, pack

BROADCAST = b"\xff" * 6
DHCP_SERVER, DHCP_CLIENT = 67, 68


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram to the guest."""

    dst_mac: bytes
    src: str
    sport: int
    dst: str
    payload: bytes


class BareVm:
    """One link to a Moorage listener."""

    def __init__(self, path: Path, mac: str, timeout: float = 5.0) -> None:
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self.reader = FrameReader()
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(timeout)
        self.link.connect(str(path))

    def send(self, frame: bytes) -> None:
        """One Ethernet frame."""
        self.link.sendall(pack(frame))

    def frames(self) -> Iterator[bytes]:
        """Frames as they come, until the link ends. Raises TimeoutError after a silence."""
        while size := self.link.recv_into(self.reader.space()):
            yield from [bytes(frame) for frame in self.reader.received(size)]

    def send_udp(self, src: str, sport: int, dst: str, dport: int, payload: bytes) -> None:
        """A datagram to whoever listens."""
        udp = dpkt.udp.UDP(sport=sport, dport=dport, data=payload)
        udp.ulen = len(udp)
        packet = dpkt.ip.IP(src=inet_aton(src), dst=inet_aton(dst), p=dpkt.ip.IP_PROTO_UDP, ttl=64, data=udp)
        self.send(bytes(dpkt.ethernet.Ethernet(src=self.mac, dst=BROADCAST, type=ETH_TYPE_IP, data=packet)))

    def datagrams(self, port: int) -> Iterator[Datagram]:
        """Datagrams to a port, as they come. Raises TimeoutError after a silence."""
        for frame in self.frames():
            ethernet = dpkt.ethernet.Ethernet(frame)
            udp = getattr(ethernet.data, "data", None)
            if isinstance(udp, dpkt.udp.UDP) and udp.dport == port:
                packet = ethernet.data
                yield Datagram(ethernet.dst, inet_ntoa(packet.src), udp.sport, inet_ntoa(packet.dst), udp.data)

    def dhcp(self, message: bytes, src: str = "0.0.0.0", sport: int = DHCP_CLIENT) -> Datagram:
        """The answer to a DHCP message."""
        self.send_udp(src, sport, "255.255.255.255", DHCP_SERVER, message)
        transaction = message[4:8]
        return next(reply for reply in self.datagrams(sport) if reply.payload[4:8] == transaction)

    def discover(self, transaction: int = 1) -> str:
        """Ask for an address by DHCPDISCOVER; the address offered."""
        reply = self.dhcp(self.dhcp_message(dpkt.dhcp.DHCPDISCOVER, transaction=transaction, flags=0x8000))
        return inet_ntoa(reply.payload[16:20])

    def dhcp_message(
        self,
        kind: int,
        *options: tuple[int, bytes],
        transaction: int = 1,
        flags: int = 0,
        ciaddr: str = "0.0.0.0",
        giaddr: str = "0.0.0.0",
    ) -> bytes:
        """A DHCP message of this guest."""
        return bytes(
            dpkt.dhcp.DHCP(
                op=dpkt.dhcp.DHCP_OP_REQUEST,
                xid=transaction,
                chaddr=self.mac,
                flags=flags,
                ciaddr=int.from_bytes(inet_aton(ciaddr), "big"),
                giaddr=int.from_bytes(inet_aton(giaddr), "big"),
                opts=[(dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes([kind])), *options],
            )
        )

    def close(self) -> None:
        """Pull the plug."""
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
