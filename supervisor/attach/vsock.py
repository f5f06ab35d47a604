"""VMs that come over vsock: an HTTP request, then a 2-byte little-endian length before each frame.

The request is ``POST /connect`` as gvforwarder sends it (any method will do), and nothing is answered to it: frames
follow at once, both ways. ``/connect?framing=qemu`` asks for QEMU's framing instead.

Where the socket is::

    vsock://:1024              AF_VSOCK, vsock(7): port 1024, for VMs of any hypervisor that uses vhost-vsock
    vsock://CID:1024           the same, on that context id of this machine alone (1: its loopback, vsock_loopback)
    vsock://null:1024/DIR      a unix socket in that directory, named as HyperKit names its vsock port 1024
    vsock://null:1024/PATH     a unix socket of that name
    unix:///PATH               the same; Firecracker and Cloud Hypervisor bring their VMs' port 1024 to PATH_1024

A client of such a unix socket may say ``CONNECT 1024`` and a newline first, as if it were a hypervisor's own; then the
answer is ``OK 1024`` and a newline, and the request follows.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import SplitResult, parse_qs, urlsplit

from proto.messages import CONNECT_FRAMINGS, Framing
from supervisor.attach.handshake import GreetingListener, HandshakeError, receive_through
from supervisor.attach.listener import Host
from supervisor.endpoints import (
    MAX_U32,
    MAX_UNIX_PATH,
    UNIX,
    VSOCK,
    VSOCK_WITH_CID,
    Endpoint,
    UnixEndpoint,
    UrlForm,
    VsockEndpoint,
)
from supervisor.errors import StartError

VMADDR_CID_HOST = 2
HYPERKIT_NAME = "{:08x}.{:08x}"
"""Of the unix socket for a context id and port."""
MAX_HEAD = 8192
"""Bytes of the HTTP request; gvforwarder's has 85."""
PATH = "/connect"

_LINE_END = re.compile(rb"\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CONNECT = re.compile(rb"CONNECT (\d{1,10})\r?\n")
_BODY = re.compile(rb"\n(content-length:\s*0*[1-9]|transfer-encoding:)", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"[A-Z]+ (\S+) HTTP/1\.[01]\r?\n")


@dataclass(frozen=True, slots=True)
class HybridEndpoint(Endpoint):
    """A unix socket that stands for a port of vsock."""

    port: int
    path: str

    def __str__(self) -> str:
        return f"vsock://null:{self.port}{self.path}"

    def socket(self) -> UnixEndpoint:
        """Where it is: in a directory it has the name HyperKit gives it."""
        path = self.path
        if os.path.isdir(path):
            path = os.path.join(path, HYPERKIT_NAME.format(VMADDR_CID_HOST, self.port))
        if len(os.fsencode(path)) > MAX_UNIX_PATH:
            raise StartError(
                f"cannot listen on {self}: {path} is longer than the {MAX_UNIX_PATH} bytes of a socket's path"
            )
        return UnixEndpoint(path)


def _parse_hybrid(url: SplitResult) -> Endpoint | None:
    match = re.fullmatch(r"null:(\d{1,10})", url.netloc)
    if url.scheme != "vsock" or match is None or int(match[1]) >= MAX_U32 or len(url.path) < 2:
        return None
    return HybridEndpoint(int(match[1]), url.path)


class VsockListener(GreetingListener):
    """A VM whose own program (gvforwarder, ``moorage agent``) speaks for its network card."""

    kind = "vsock"
    title = "vsock"
    forms = (
        VSOCK,
        VSOCK_WITH_CID,
        UrlForm("vsock://null:PORT/PATH", _parse_hybrid),
        UNIX,
    )
    framing: ClassVar[Framing] = "stream16"

    @classmethod
    def knows_uids(cls, endpoint: Endpoint) -> bool:
        return not isinstance(endpoint, VsockEndpoint)

    def attach_hint(self) -> str:
        if isinstance(self.endpoint, VsockEndpoint):
            return f"in the VM: moorage agent --connect vsock://{VMADDR_CID_HOST}:{self.endpoint.port}/connect"
        return f"moorage agent --connect {self.endpoint}/connect"

    def _listen(self, endpoint: Endpoint) -> tuple[socket.socket, Endpoint]:
        self._port = endpoint.port if isinstance(endpoint, HybridEndpoint) else None
        return super()._listen(endpoint.socket() if isinstance(endpoint, HybridEndpoint) else endpoint)

    async def _shake_hands(self, sock: socket.socket, host: Host) -> Framing:
        first = await receive_through(sock, _LINE_END, MAX_HEAD)
        connect = _CONNECT.fullmatch(first) if sock.family == socket.AF_UNIX else None
        if connect:
            if self._port not in (None, int(connect[1])):
                raise HandshakeError(f"expected CONNECT {self._port}, got {first!r}")
            await asyncio.get_running_loop().sock_sendall(sock, b"OK %b\n" % connect[1])
            first = b""
        return framing_asked(await receive_through(sock, _HEAD_END, MAX_HEAD, first))


def framing_asked(head: bytes) -> Framing:
    """The framing that an HTTP request for ``/connect`` asks for. Raises HandshakeError where it is none."""
    request = _REQUEST_LINE.match(head)
    if request is None:
        raise HandshakeError(f"expected an HTTP request for {PATH}, got {head[:60]!r}")
    try:
        target = urlsplit(request[1].decode("latin-1"))
    except ValueError:
        target = urlsplit("")
    if target.path != PATH:
        raise HandshakeError(f"expected a request for {PATH}, got {target.path[:60]!r}")
    if _BODY.search(head):
        raise HandshakeError("expected a request without a body")
    asked = parse_qs(target.query).get("framing", [""])[-1]
    if asked not in CONNECT_FRAMINGS:
        raise HandshakeError(f"expected framing=qemu or none, got {asked[:60]!r}")
    return CONNECT_FRAMINGS[asked]
