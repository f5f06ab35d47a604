"""Where VMs attach: one listener per ``--listen``, one small class per kind of VM, each in a module of its own.

A kind knows which URLs it takes, its framing, how a guest attaches to it, and what an accepted connection needs before
its first frame. `kinds` lists them.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from proto.messages import Framing
from supervisor.attach.complaints import Complaints
from supervisor.attach.link import Link, SocketLink
from supervisor.attach.options import NO_OPTIONS, Options
from supervisor.endpoints import (
    Endpoint,
    StreamEndpoint,
    UnixEndpoint,
    UrlForm,
    bound_endpoint,
    endpoint_file,
    join_host_port,
    listen,
    unlink_endpoint,
)
from supervisor.limits import in_the_way

ACCEPT_PAUSE = 1.0
"""s; when accept fails (no descriptors left), trying again at once would only spin."""
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A VM behind TCP that vanished without a word is noticed after 30 s."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A VM's fresh connection."""

    link: Link
    kind: str
    """Of the listener: ``qemu``"""
    framing: Framing
    listener: str
    peer: str
    first_bytes: bytes = b""
    """What was read from the link already; of messages, each behind its length as on a ``stream32``."""
    gone: asyncio.Future[str] | None = None
    """Why the VM is no more, once it is, where the link cannot tell."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a listener has of the service and of the network of its VMs."""

    attach: Callable[[Attachment], None]
    mtu: int
    mac_of_uuid: Callable[[str], str]
    on_error: Callable[[], None] = lambda: None
    """VMs cannot attach, for now."""


class Listener(abc.ABC):
    """Where VMs of one kind attach. Making one binds it and raises StartError when that does not work."""

    kind: ClassVar[str]
    title: ClassVar[str]
    """What people call the kind."""
    framing: ClassVar[Framing]
    forms: ClassVar[tuple[UrlForm, ...]]
    """The URLs it takes."""
    lasts: ClassVar[bool] = True
    """More VMs may attach, as long as the service runs."""
    endpoint: Endpoint
    """Where it in fact listens."""

    @abc.abstractmethod
    def __init__(self, endpoint: Endpoint, options: Options) -> None: ...

    @classmethod
    def knows_uids(cls, endpoint: Endpoint) -> bool:
        """Whether the system tells whose process is at the other end."""
        return isinstance(endpoint, UnixEndpoint)

    @abc.abstractmethod
    def start(self, host: Host) -> None:
        """Let VMs attach on the running loop from now on."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop listening and remove what was bound."""

    @abc.abstractmethod
    def attach_hint(self) -> str:
        """What to tell a user who wants to attach a VM."""


class AcceptingListener(Listener):
    """One listening socket; each connection it accepts is a VM."""

    def __init__(self, endpoint: Endpoint, options: Options = NO_OPTIONS) -> None:
        self._sock, self.endpoint = self._listen(endpoint)
        self._file = endpoint_file(self.endpoint)
        self._options = options
        self._complaints = Complaints()
        self._host: Host | None = None
        self._pause: asyncio.TimerHandle | None = None

    def start(self, host: Host) -> None:
        self._host = host
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def close(self) -> None:
        if self._host is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        self._complaints.close()
        # podman has QEMU bind its monitor to the path of the listener it came by.
        is_ours = endpoint_file(self.endpoint) == self._file
        self._sock.close()
        if is_ours:
            unlink_endpoint(self.endpoint)

    @abc.abstractmethod
    def _listen(self, endpoint: Endpoint) -> tuple[socket.socket, Endpoint]:
        """A non-blocking listening socket, and where it in fact listens. Raises StartError."""

    def _accept(self) -> None:
        try:
            sock, address = self._sock.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client was gone before we came
        except OSError as error:
            log.error("cannot accept on %s: %s: %s", self.endpoint, error.strerror, in_the_way(error.errno))
            if self._host is not None:
                self._host.on_error()
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock)
            self._pause = loop.call_later(ACCEPT_PAUSE, loop.add_reader, self._sock, self._accept)
            return
        try:
            peer, uid = self._prepare(sock, address)
        except OSError as error:
            self._complaints.add(f"a connection to {self.endpoint} ended at once: {error}")
            sock.close()
            return
        if self._options.allow_uid and uid not in self._options.allow_uid:
            whose = "a user the system does not tell" if uid is None else f"uid {uid}"
            self._complaints.add(f"refused a connection to {self.endpoint} of {whose}: allow-uid does not name it")
            sock.close()
            return
        assert self._host is not None
        self._welcome(sock, peer, self._host)

    def _welcome(self, sock: socket.socket, peer: str, host: Host) -> None:
        """A connection that may attach."""
        host.attach(Attachment(SocketLink(sock), self.kind, self.framing, str(self.endpoint), peer))

    def _prepare(self, sock: socket.socket, address: Any) -> tuple[str, int | None]:
        """Set a connection up; what it tells of the other end, and whose that is."""
        return prepare(sock, address)


class StreamListener(AcceptingListener):
    """A unix or TCP stream socket."""

    def _listen(self, endpoint: Endpoint) -> tuple[socket.socket, Endpoint]:
        assert isinstance(endpoint, StreamEndpoint), endpoint
        sock = listen(endpoint)
        return sock, bound_endpoint(sock)


def prepare(sock: socket.socket, address: Any) -> tuple[str, int | None]:
    """Set a connection up; what it tells of the other end, and whose that is, where it does."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return _unix_peer(sock)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        return join_host_port(address[0], address[1]), None
    return f"cid={address[0]} port={address[1]}", None  # vsock(7)


def _unix_peer(sock: socket.socket) -> tuple[str, int | None]:
    """``uid=1000 pid=4242`` and the uid; nothing where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return "", None
    ucred = struct.Struct("iII")
    pid, uid, _ = ucred.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size))
    return f"uid={uid} pid={pid}", uid
