"""Where a stream socket listens: ``unix:///PATH`` or ``tcp://HOST:PORT``; and binding it.

A unix socket left behind by a service that is gone (nobody listens) is replaced; one that somebody listens on, or a
file that is no socket, is an error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from urllib.parse import urlsplit

from supervisor.errors import StartError

MAX_UNIX_PATH = 107
"""Bytes; sizeof(sun_path) - 1, unix(7). Other systems have less, none has more."""
BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A host address and port; port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{join_host_port(self.host, self.port)}"


Endpoint = UnixEndpoint | TcpEndpoint


def parse_endpoint(url: str) -> Endpoint:
    """The endpoint a URL names. Raises ValueError that says what was expected."""
    expected = f"expected unix:///PATH or tcp://HOST:PORT, got {url!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(expected) from error
    if parts.query or parts.fragment or parts.username:
        raise ValueError(expected)
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        if len(os.fsencode(parts.path)) > MAX_UNIX_PATH:
            raise ValueError(f"expected a socket path of at most {MAX_UNIX_PATH} bytes, got {parts.path!r}")
        return UnixEndpoint(parts.path)
    if parts.scheme == "tcp" and parts.hostname and port is not None and parts.path in ("", "/"):
        return TcpEndpoint(parts.hostname, port)
    raise ValueError(expected)


def join_host_port(host: str, port: int) -> str:
    """``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(endpoint: Endpoint) -> socket.socket:
    """A non-blocking listening socket; a unix one has mode 0600. Raises StartError that names the address."""
    try:
        sock = _listen_unix(endpoint) if isinstance(endpoint, UnixEndpoint) else _listen_tcp(endpoint)
    except OSError as error:
        raise StartError(f"cannot listen on {endpoint}: {error.strerror or error}") from error
    sock.setblocking(False)
    return sock


def bound_endpoint(sock: socket.socket) -> Endpoint:
    """Where a listening socket in fact listens, its port filled in."""
    address = sock.getsockname()
    return UnixEndpoint(address) if isinstance(address, str) else TcpEndpoint(address[0], address[1])


def unlink_endpoint(endpoint: Endpoint) -> None:
    """Remove a unix endpoint's file, if it is there."""
    if isinstance(endpoint, UnixEndpoint):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint.path)


def _listen_unix(endpoint: UnixEndpoint) -> socket.socket:
    _remove_stale_socket(endpoint.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        sock.bind(endpoint.path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _remove_stale_socket(path: str) -> None:
    """Unlink a socket nobody listens on. Raises StartError when somebody does, or when it is another kind of file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on unix://{path}: the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog answers EAGAIN instead of making us wait
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise StartError(f"cannot listen on unix://{path}: address already in use")


def _listen_tcp(endpoint: TcpEndpoint) -> socket.socket:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
