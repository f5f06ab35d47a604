"""Where VMs attach: one listener per socket, one small class per kind of VM, each in a module of its own.

A kind knows its framing, how a guest attaches to it, and what an accepted socket needs. `kinds` lists them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from proto.messages import Framing
from supervisor.endpoints import Endpoint, TcpEndpoint, UnixEndpoint, bound_endpoint, listen, unlink_endpoint

ACCEPT_PAUSE = 1.0
"""s; when accept fails (no descriptors left), trying again at once would only spin."""
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A VM behind TCP that vanished without a word is noticed after 30 s."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A VM's fresh connection."""

    sock: socket.socket
    link: str
    """Listener kind."""
    framing: Framing
    listener: str
    peer: str


class Listener:
    """One listening stream socket. Raises StartError when it cannot be bound."""

    kind: str
    title: str
    """What people call the kind."""
    framing: Framing

    def __init__(self, endpoint: Endpoint) -> None:
        self._sock = listen(endpoint)
        self.endpoint = bound_endpoint(self._sock)
        self._on_attach: Callable[[Attachment], None] | None = None
        self._pause: asyncio.TimerHandle | None = None

    def start(self, on_attach: Callable[[Attachment], None]) -> None:
        """Accept on the running loop from now on."""
        self._on_attach = on_attach
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Stop listening and unlink the socket's file."""
        if self._on_attach is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        self._sock.close()
        unlink_endpoint(self.endpoint)

    def attach_hint(self) -> str:
        """What to tell a user who wants to attach a VM."""
        raise NotImplementedError

    def _accept(self) -> None:
        assert self._on_attach is not None
        try:
            sock, address = self._sock.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client was gone before we came
        except OSError as error:
            log.error("cannot accept on %s: %s", self.endpoint, error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock)
            self._pause = loop.call_later(ACCEPT_PAUSE, loop.add_reader, self._sock, self._accept)
            return
        try:
            peer = self._prepare(sock, address)
        except OSError as error:
            log.info("a connection to %s ended at once: %s", self.endpoint, error)
            sock.close()
            return
        self._on_attach(Attachment(sock, self.kind, self.framing, str(self.endpoint), peer))

    def _prepare(self, sock: socket.socket, address: object) -> str:
        """Set the socket up; return what it tells of the other end."""
        sock.setblocking(False)
        if isinstance(self.endpoint, UnixEndpoint):
            return _unix_peer(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        assert isinstance(address, tuple), address
        return str(TcpEndpoint(address[0], address[1])).removeprefix("tcp://")


def _unix_peer(sock: socket.socket) -> str:
    """``uid=1000 pid=4242``; empty where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return ""
    ucred = struct.Struct("3i")
    pid, uid, _ = ucred.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size))
    return f"uid={uid} pid={pid}"
