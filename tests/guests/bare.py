"""A guest without a machine: a socket that speaks frames. For numbers of VMs, and for frames no kernel would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import dpkt

from proto.framing import FrameReader, pack

BROADCAST = b"\xff" * 6
DHCP_SERVER, DHCP_CLIENT = 67, 68


class BareVm:
    """One link to a Moorage listener."""

    def __init__(self, path: Path, mac: str, timeout: float = 5.0) -> None:
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self._reader = FrameReader()
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(timeout)
        self.link.connect(str(path))

    def send(self, frame: bytes) -> None:
        """One Ethernet frame."""
        self.link.sendall(pack(frame))

    def frames(self) -> Iterator[bytes]:
        """Frames as they come, until the link ends. Raises TimeoutError after a silence."""
        while size := self.link.recv_into(self._reader.space()):
            yield from [bytes(frame) for frame in self._reader.received(size)]

    def discover(self, transaction: int = 1) -> str:
        """Ask for an address by DHCPDISCOVER; the address offered."""
        self.send(self._discover_frame(transaction))
        for frame in self.frames():
            udp = dpkt.ethernet.Ethernet(frame).data.data
            if isinstance(udp, dpkt.udp.UDP) and udp.dport == DHCP_CLIENT:
                offer = dpkt.dhcp.DHCP(udp.data)
                assert offer.xid == transaction
                return socket.inet_ntoa(struct.pack("!I", offer.yiaddr))
        raise AssertionError("the link was closed")

    def _discover_frame(self, transaction: int) -> bytes:
        message = dpkt.dhcp.DHCP(
            op=dpkt.dhcp.DHCP_OP_REQUEST,
            xid=transaction,
            chaddr=self.mac,
            flags=0x8000,
            opts=[(dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes([dpkt.dhcp.DHCPDISCOVER]))],
        )
        udp = dpkt.udp.UDP(sport=DHCP_CLIENT, dport=DHCP_SERVER, data=bytes(message))
        udp.ulen = len(udp)
        packet = dpkt.ip.IP(src=bytes(4), dst=b"\xff" * 4, p=dpkt.ip.IP_PROTO_UDP, ttl=64, data=udp)
        return bytes(dpkt.ethernet.Ethernet(src=self.mac, dst=BROADCAST, type=dpkt.ethernet.ETH_TYPE_IP, data=packet))

    def close(self) -> None:
        """Pull the plug."""
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
