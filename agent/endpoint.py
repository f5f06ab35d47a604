"""Where the host is: the URLs that ``--connect`` takes, and how a link to each is made.

::

    vsock://2:1024/connect          AF_VSOCK, the host's side of a VM (2 is VMADDR_CID_HOST)
    unix:///run/moorage/qemu.sock   a unix socket
    unix:///run/moorage/api.sock/connect
    tcp://192.0.2.1:9000            TCP; with /connect likewise
    stdio:PROGRAM ARGS              a program that carries the frames on its standard input and output
    stdio:PROGRAM?flag=value        the same, as gvforwarder spells it: PROGRAM -flag=value
    stdio:                          our own standard input and output

A URL that ends in ``/connect`` begins with the HTTP request that turns a connection to Moorage's (or gvproxy's) API
into a link; nothing is answered to it. Framing: stream16 after that request, on vsock and on stdio, else stream32,
which is QEMU's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

CONNECT_TIMEOUT = 5.0
"""s"""
END_TIMEOUT = 2.0
"""s; how long a program may take to end when its link is closed."""
HOST_CID = 2
ANY_U32 = 0xFFFFFFFF
UPGRADE_PATH = "/connect"
UPGRADE = (
    f"POST {UPGRADE_PATH} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"
).encode()
"""To the byte what gvforwarder sends: a listener may know no other."""
EXPECTED = "expected vsock://CID:PORT/connect, unix:///PATH, tcp://HOST:PORT or stdio:PROGRAM ARGS"


class Link:
    """An open connection: bytes come out of `incoming` and go into `outgoing`, which may be the same descriptor."""

    def __init__(self, incoming: int, outgoing: int, close: Callable[[], None]) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self._close = close

    @classmethod
    def of_socket(cls, sock: socket.socket) -> Link:
        """Take over a connected stream socket."""
        return cls(sock.fileno(), sock.fileno(), sock.close)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


@dataclass(frozen=True)
class Endpoint:
    """A place to connect to."""

    url: str
    framing: str
    """What is spoken there unless told otherwise."""
    connect: Callable[[], Link]
    """Raises OSError where nobody is there."""
    lasts: bool = True
    """Connecting again after the link's end makes sense."""
    program: str = ""
    """That carries the frames."""


def parse(text: str) -> Endpoint:
    """An endpoint from its URL. Raises ValueError saying what was expected."""
    try:
        return _parse(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _parse(text: str) -> Endpoint:
    if text.startswith("stdio:"):
        return _stdio(text)
    url = urlsplit(text)
    path, upgrade = (url.path[: -len(UPGRADE_PATH)], True) if url.path.endswith(UPGRADE_PATH) else (url.path, False)
    dial = _dialler(url, path)
    framing = "stream16" if upgrade or url.scheme == "vsock" else "stream32"
    return Endpoint(text, framing, lambda: _open(dial, upgrade))


def _dialler(url: SplitResult, path: str) -> Callable[[], socket.socket]:
    if url.scheme == "unix" and path and not url.netloc:
        return lambda: _connected(socket.AF_UNIX, path)
    if url.scheme == "tcp" and url.hostname and url.port and path in ("", "/"):
        host, port = url.hostname, url.port
        return lambda: _connected_tcp(host, port)
    if url.scheme == "vsock" and path in ("", "/"):
        cid, port = _vsock_address(url.netloc)
        return lambda: _connected_vsock(cid, port)
    raise ValueError(EXPECTED)


def _vsock_address(text: str) -> tuple[int, int]:
    """``CID:PORT``; both are 32 bits wide, so urllib's own idea of a port does not do."""
    cid_text, _, port_text = text.partition(":")
    if not (port_text.isdecimal() and (cid_text.isdecimal() or not cid_text)):
        raise ValueError(EXPECTED)
    cid, port = int(cid_text or HOST_CID), int(port_text)
    if not (cid < ANY_U32 and port < ANY_U32):
        raise ValueError("a vsock CID and port are below 4294967295")
    return cid, port


def _connected_tcp(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port), CONNECT_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _connected_vsock(cid: int, port: int) -> socket.socket:
    try:
        return _connected(socket.AF_VSOCK, (cid, port))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {_vsock_remedy(error)}") from error


def _vsock_remedy(error: OSError) -> str:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "nobody listens there on the host"
    return "does the VM have a vsock device, and the guest its driver (modprobe vmw_vsock_virtio_transport)?"


def _connected(family: int, address: str | tuple[int, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _open(dial: Callable[[], socket.socket], upgrade: bool) -> Link:
    sock = dial()
    try:
        if upgrade:
            sock.sendall(UPGRADE)
    except BaseException:
        sock.close()
        raise
    return Link.of_socket(sock)


def _stdio(text: str) -> Endpoint:
    command, _, flags = text[len("stdio:") :].partition("?")
    argv = [*shlex.split(command), *(f"-{name}={value}" for name, value in parse_qsl(flags))]
    if not argv:
        if os.isatty(0) or os.isatty(1):
            raise ValueError("standard input and output are a terminal; expected a program at their other end")
        return Endpoint(text, "stream16", _own_stdio, lasts=False)
    return Endpoint(text, "stream16", lambda: _spawn(argv), program=argv[0])


def _own_stdio() -> Link:
    return Link(sys.stdin.fileno(), sys.stdout.fileno(), lambda: None)


def _spawn(argv: list[str]) -> Link:
    """A program with one socket as its standard input and output."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            child = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno())
        except BaseException:
            ours.close()
            raise

    def close() -> None:
        ours.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_TIMEOUT)
            return
        child.kill()
        child.wait()

    return Link(ours.fileno(), ours.fileno(), close)
