"""BESS's links: a SEQPACKET socket, a frame a message; what User Mode Linux speaks."""

from __future__ import annotations

import socket
from typing import ClassVar

from proto.messages import Framing
from supervisor.attach.listener import AcceptingListener
from supervisor.endpoints import UNIX, UNIXPACKET, Endpoint, UnixEndpoint, listen

SEND_BUFFER = 1 << 20
"""Bytes asked of the system, which may grant less: room for what all flows together may have on their way."""


class BessListener(AcceptingListener):
    """``vec0:transport=bess,dst=PATH`` of User Mode Linux, and slirp4netns's ``--target-type=bess``."""

    kind = "bess"
    title = "User Mode Linux (BESS)"
    forms = (UNIXPACKET, UNIX)
    framing: ClassVar[Framing] = "messages"

    def _listen(self, endpoint: Endpoint) -> tuple[socket.socket, Endpoint]:
        assert isinstance(endpoint, UnixEndpoint), endpoint
        return listen(endpoint, socket.SOCK_SEQPACKET), endpoint

    def _prepare(self, sock: socket.socket, address: object) -> tuple[str, int | None]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return super()._prepare(sock, address)

    def attach_hint(self) -> str:
        assert isinstance(self.endpoint, UnixEndpoint)
        return f"linux vec0:transport=bess,dst={self.endpoint.path},depth=128,gro=1,mac=5a:94:ef:e4:0c:ee"
