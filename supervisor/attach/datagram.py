"""Unix datagram listeners: a frame a datagram, and the kernel tells nobody who comes and goes.

A VM binds a path of its own and sends to the listener's. What it sends first makes the listener's socket its own: that
socket is connected to the VM's, from when on the kernel keeps other senders out, and what waits in it by then is read:
the VM's frames go to its worker, others' are not mixed in. That a VM is gone is found out by asking, once a second;
its link is then shut down, and its worker sees the end as on any other link.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from proto.framing import pack
from proto.messages import Framing
from supervisor.attach.complaints import Complaints
from supervisor.attach.link import Link, SocketLink
from supervisor.attach.listener import Attachment, Host, Listener
from supervisor.attach.options import NO_OPTIONS, Options
from supervisor.attach.unix_peers import Address, is_peer_gone, shown
from supervisor.endpoints import MAX_UNIX_PATH, Endpoint, UnixEndpoint, bind_unix, unlink_endpoint
from supervisor.errors import ListenError, StartError

SEND_BUFFER, RECEIVE_BUFFER = 1 << 20, 4 << 20
"""Bytes asked of the system, which may grant less."""
MAX_DATAGRAM = 65_550
"""Bytes; a frame with the largest MTU."""
MAX_WAITING = 1024
"""Datagrams that are read of a socket when a VM takes it; more than net.unix.max_dgram_qlen lets wait anywhere."""
MAX_FIRST_BYTES = 65_536
"""Of the frames that came before the worker; what is more is lost, as on any network."""
WATCH_INTERVAL = 1.0
"""s between two looks at who is still there."""
UCRED = struct.Struct("iII")
ANCILLARY_SIZE = socket.CMSG_SPACE(UCRED.size) if hasattr(socket, "SO_PASSCRED") else 0
"""Bytes; room for the sender's credentials, and none for descriptors."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One of a VM's, and who sent it."""

    data: bytes
    sender: Address
    """Empty: a socket without a name, which cannot be answered."""
    peer: str
    """``uid=1000 pid=4242``; empty where the system does not tell."""
    uid: int | None


class DatagramLink(SocketLink):
    """A datagram socket that is connected to its VM's."""

    def __init__(self, sock: socket.socket, address: Address, on_close: Callable[[DatagramLink], None]) -> None:
        super().__init__(sock)
        self.address = address
        self._on_close = on_close

    def is_closed(self) -> bool:
        return super().is_closed() or is_peer_gone(self.sock)

    def end(self) -> None:
        """Let its worker see the end of the link."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        super().close()
        self._on_close(self)


class DatagramListener(Listener):
    """A path to which VMs send. A kind says what becomes of a datagram from a VM that is not known yet."""

    framing: ClassVar[Framing] = "messages"
    magic: ClassVar[bytes] = b""
    """A first datagram of a VM that is no frame."""

    def __init__(self, endpoint: Endpoint, options: Options = NO_OPTIONS) -> None:
        assert isinstance(endpoint, UnixEndpoint), endpoint
        self.endpoint: UnixEndpoint = endpoint
        self._next = UnixEndpoint(f"{endpoint.path}~")
        if len(os.fsencode(self._next.path)) > MAX_UNIX_PATH:
            raise StartError(f"cannot listen on {endpoint}: expected a path of at most {MAX_UNIX_PATH - 1} bytes")
        self._options = options
        self._complaints = Complaints()
        self._host: Host | None = None
        self._links: set[DatagramLink] = set()
        self._told: set[str] = set()
        self._watching: asyncio.TimerHandle | None = None
        try:
            self._sock: socket.socket | None = _prepared(bind_unix(endpoint, socket.SOCK_DGRAM))
        except OSError as error:
            raise ListenError(endpoint, error) from error
        self._mode = stat.S_IMODE(os.stat(endpoint.path).st_mode)

    @classmethod
    def knows_uids(cls, endpoint: Endpoint) -> bool:
        return hasattr(socket, "SO_PASSCRED")

    def start(self, host: Host) -> None:
        self._host = host
        self._listen()
        self._watch()

    def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._complaints.close()
        if self._sock is not None:
            if self._host is not None:
                asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
        self._host = None
        unlink_endpoint(self.endpoint)

    @abc.abstractmethod
    def _on_sender(self, sock: socket.socket, first: Datagram) -> None:
        """A VM that is not known yet sent to the listener's socket."""

    def _listen(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock, self._on_readable, self._sock)

    def _on_readable(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            datagram = receive(sock)
            if self._may_attach(datagram):
                self._on_sender(sock, datagram)

    def _may_attach(self, datagram: Datagram) -> bool:
        if not datagram.sender:
            self._tell_once("a sender without a path of its own, which cannot be answered")
        elif self._options.allow_uid and datagram.uid not in self._options.allow_uid:
            self._tell_once(f"uid {datagram.uid}: allow-uid does not name it")
        else:
            return True
        return False

    def _tell_once(self, whose: str) -> None:
        """Of what may come with every datagram."""
        if whose not in self._told:
            self._told.add(whose)
            log.warning("refused datagrams to %s of %s", self.endpoint, whose)

    def _replace_socket(self) -> socket.socket:
        """A fresh socket in the place of the one that has become a VM's; no sender finds the path empty meanwhile.

        Raises OSError.
        """
        try:
            sock = _prepared(bind_unix(self._next, socket.SOCK_DGRAM))
        except StartError as error:
            raise OSError(str(error)) from error
        try:
            os.chmod(self._next.path, self._mode)
            os.rename(self._next.path, self.endpoint.path)
        except OSError:
            sock.close()
            raise
        return sock

    def _attach_directly(self, sock: socket.socket, first: Datagram, waiting: Iterable[Datagram]) -> bool:
        """Make `sock`, which nothing else reads, the link of the VM that sent `first`; `waiting`: read of it already.

        False, and closed: the VM cannot be answered.
        """
        try:
            sock.connect(first.sender)
        except OSError as error:
            self._complaints.add(f"dropped a VM on {self.endpoint}: cannot answer {shown(first.sender)}: {error}")
            sock.close()
            return False
        if hasattr(socket, "SO_PASSCRED"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        received = (*waiting, *drain(sock))
        frames = [datagram.data for datagram in received if datagram.sender == first.sender]
        if len(frames) < len(received):
            self._complaints.add(f"lost datagrams to {self.endpoint} of other senders: {len(received) - len(frames)}")
        link = DatagramLink(sock, first.sender, self._on_link_closed)
        self._links.add(link)
        self._attach(link, first, frames)
        return True

    def _attach(self, link: Link, first: Datagram, frames: list[bytes]) -> None:
        """Hand a VM over, with what it has sent so far."""
        assert self._host is not None
        if frames and frames[0] == self.magic:
            del frames[0]
        first_bytes = b"".join(map(pack, frames))
        if len(first_bytes) > MAX_FIRST_BYTES:
            first_bytes = b""
        peer = " ".join(filter(None, (first.peer, shown(first.sender))))
        self._host.attach(Attachment(link, self.kind, self.framing, str(self.endpoint), peer, first_bytes))

    def _on_link_closed(self, link: DatagramLink) -> None:
        self._links.discard(link)

    def _watch(self) -> None:
        for link in self._links:
            if is_peer_gone(link.sock):
                link.end()
        self._watching = asyncio.get_running_loop().call_later(WATCH_INTERVAL, self._watch)


def receive(sock: socket.socket) -> Datagram:
    """The next datagram. Raises BlockingIOError, ConnectionError."""
    data, ancillary, _, sender = sock.recvmsg(MAX_DATAGRAM, ANCILLARY_SIZE)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid, uid, _ = UCRED.unpack(content)
            return Datagram(data, sender or "", f"uid={uid} pid={pid}", uid)
    return Datagram(data, sender or "", "", None)


def drain(sock: socket.socket) -> Iterator[Datagram]:
    """What waits in the socket."""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        for _ in range(MAX_WAITING):
            yield receive(sock)


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    if hasattr(socket, "SO_PASSCRED"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return sock
