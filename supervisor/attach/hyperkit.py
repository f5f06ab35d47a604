"""HyperKit's link: VPNKit's handshake on a unix stream, then a 2-byte little-endian length before each frame.

The handshake, numbers little-endian::

    VM:      init     49 bytes   "VMN3T", version (4), commit (40)
    Moorage: init     49 bytes   the same back: whatever version it is, it is spoken here
    VM:      command  41 bytes   1 (Ethernet) or 8 (Ethernet, with an address it would like), UUID as text (36), 4 more
    Moorage: reply   258 bytes   1, MTU (2), longest frame (2), MAC (6), zeros; or 2, length (1), reason

A VM is known by its UUID: the same UUID gets the same MAC, and so the same lease, again. The address that a VM would
like is left to DHCP.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from typing import ClassVar

from proto.messages import Framing
from supervisor.attach.handshake import GreetingListener, HandshakeError, receive_exactly
from supervisor.attach.listener import Host
from supervisor.endpoints import UNIX, UnixEndpoint

INIT = struct.Struct("<5sI40s")
MAGIC = b"VMN3T"
COMMAND = struct.Struct("<B36s4s")
ETHERNET, PREFERRED_IPV4 = 1, 8
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
REPLY_SIZE = 258
VIF, REFUSED = 1, 2
ETHERNET_HEADER_SIZE = 14


class HyperkitListener(GreetingListener):
    """HyperKit's ``virtio-vpnkit``."""

    kind = "hyperkit"
    title = "HyperKit"
    forms = (UNIX,)
    framing: ClassVar[Framing] = "stream16"

    def attach_hint(self) -> str:
        assert isinstance(self.endpoint, UnixEndpoint)
        return f"-s 2:0,virtio-vpnkit,path={self.endpoint.path},uuid=UUID"

    async def _shake_hands(self, sock: socket.socket, host: Host) -> Framing:
        loop = asyncio.get_running_loop()
        init = await receive_exactly(sock, INIT.size)
        if not init.startswith(MAGIC):
            raise HandshakeError(f"expected {MAGIC!r} first, got {init[: len(MAGIC)]!r}")
        await loop.sock_sendall(sock, init)
        command, uuid, _ = COMMAND.unpack(await receive_exactly(sock, COMMAND.size))
        try:
            reply = _vif(command, uuid, host)
        except HandshakeError as error:
            await loop.sock_sendall(sock, _refusal(str(error)))
            raise
        await loop.sock_sendall(sock, reply)
        return self.framing


def _vif(command: int, uuid: bytes, host: Host) -> bytes:
    """The reply that describes the VM's network card."""
    if command not in (ETHERNET, PREFERRED_IPV4):
        raise HandshakeError(f"expected command {ETHERNET} or {PREFERRED_IPV4}, got {command}")
    if not UUID.fullmatch(uuid):
        raise HandshakeError(f"expected a UUID as text, got {uuid!r}")
    mac = bytes.fromhex(host.mac_of_uuid(uuid.decode().lower()).replace(":", ""))
    return struct.pack("<BHH6s", VIF, host.mtu, host.mtu + ETHERNET_HEADER_SIZE, mac).ljust(REPLY_SIZE, b"\0")


def _refusal(reason: str) -> bytes:
    text = reason.encode()[: REPLY_SIZE - 2]
    return (bytes([REFUSED, len(text)]) + text).ljust(REPLY_SIZE, b"\0")
