"""Many guests at little cost: sockets that speak frames, served by one thread.

Each has a MAC, gets an address by DHCP, and answers ARP and ICMP echo as a kernel does. Behind each of them are a real
listener and a real worker.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import dpkt

from tests.guests.bare import BROADCAST, BareVm

GATEWAY_MAC = bytes.fromhex("5a94efe40cdd")


class LightVm(BareVm):
    """One guest. What comes to it and needs no answer is kept in `received`."""

    def __init__(self, path: Path, mac: str) -> None:
        super().__init__(path, mac)
        self.ip = b""
        self.received: list[bytes] = []

    def configure(self) -> str:
        """Get a lease, and use it."""
        offered = self.discover()
        request = self.dhcp_message(
            dpkt.dhcp.DHCPREQUEST, (dpkt.dhcp.DHCP_OPT_REQ_IP, socket.inet_aton(offered)), flags=0x8000
        )
        assert self.dhcp(request).payload[16:20] == socket.inet_aton(offered)
        self.ip = socket.inet_aton(offered)
        return offered

    def frame(self, payload: bytes, kind: int, dst: bytes = BROADCAST, src: bytes = b"") -> bytes:
        """An Ethernet frame; its source is the guest's own MAC unless it says otherwise."""
        return dst + (src or self.mac) + kind.to_bytes(2, "big") + payload

    def arp(self, op: int, target_ip: bytes, dst: bytes = BROADCAST, sender_ip: bytes = b"") -> bytes:
        """An ARP packet from the guest's own address unless it says otherwise."""
        arp = dpkt.arp.ARP(op=op, sha=self.mac, spa=sender_ip or self.ip, tha=dst, tpa=target_ip)
        return self.frame(bytes(arp), dpkt.ethernet.ETH_TYPE_ARP, dst)

    def receive(self, frame: bytes) -> None:
        """Answer a frame, or keep it."""
        try:
            parsed = dpkt.ethernet.Ethernet(frame)
        except dpkt.UnpackError:
            parsed = None
        packet: Any = parsed.data if parsed is not None else None
        if isinstance(packet, dpkt.arp.ARP) and packet.op == dpkt.arp.ARP_OP_REQUEST and packet.tpa == self.ip:
            self.send(self.arp(dpkt.arp.ARP_OP_REPLY, packet.spa, frame[6:12]))
        elif self._is_echo_request(packet):
            packet.src, packet.dst = packet.dst, packet.src
            packet.data.type, packet.data.sum, packet.sum = dpkt.icmp.ICMP_ECHOREPLY, 0, 0
            self.send(self.frame(bytes(packet), dpkt.ethernet.ETH_TYPE_IP, frame[6:12]))
        else:
            self.received.append(frame)

    def _is_echo_request(self, packet: Any) -> bool:
        if not isinstance(packet, dpkt.ip.IP) or packet.dst != self.ip or not isinstance(packet.data, dpkt.icmp.ICMP):
            return False
        return bool(packet.data.type == dpkt.icmp.ICMP_ECHO)


class Crowd:
    """Guests that are served until the crowd is closed."""

    def __init__(self, vms: Sequence[LightVm]) -> None:
        self.vms = vms
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="crowd")
        self._thread.start()

    def _serve(self) -> None:
        by_fd = {vm.link.fileno(): vm for vm in self.vms}
        poll = select.poll()
        for fd in (*by_fd, self._wake.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake.fileno():
                    return
                if not self._take(by_fd[fd]):
                    poll.unregister(fd)

    def _take(self, vm: LightVm) -> bool:
        """Handle what waits for a guest; False: its link has ended."""
        size = vm.link.recv_into(vm.reader.space())
        for frame in vm.reader.received(size):
            vm.receive(bytes(frame))
        return size > 0

    def close(self) -> None:
        """Serve no more, and pull all plugs."""
        self._stop.close()
        self._thread.join()
        self._wake.close()
        for vm in self.vms:
            vm.close()

    def __iter__(self) -> Iterator[LightVm]:
        return iter(self.vms)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
