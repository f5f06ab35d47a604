"""The host's end of a forward: a bound socket, or whose it is already."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path

import psutil

from proto.errors import FailureCode, RequestFailed
from supervisor.endpoints import BACKLOG, MAX_UNIX_PATH, UnixEndpoint, join_host_port, listen
from supervisor.errors import StartError

RESOLVE_TIMEOUT = 2.0
"""s for a host name in a local address."""
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
SocketAddress = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
"""As `socket.getaddrinfo` gives it."""
ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"


async def bind(protocol: str, host: str, port: int, dual_stack: bool = False) -> socket.socket:
    """A bound socket, for TCP a listening one; without a host on every address, IPv4 and IPv6. Raises RequestFailed.

    With `dual_stack` ``0.0.0.0`` and ``::`` are every address of both, too, as they are for Go.
    """
    found: SocketAddress = await _resolve(protocol, host, port) if host else (ANY_IPV6, port)
    shown = join_host_port(str(found[0]), port) if host else f":{port}"
    is_every = not host or (dual_stack and found[0] in (ANY_IPV4, ANY_IPV6))
    try:
        sock = _bind_to_every(KINDS[protocol], port) if is_every else _bind(KINDS[protocol], found)
    except OSError as error:
        raise _refused(f"listen {protocol} {shown}", error) from error
    sock.setblocking(False)
    return sock


def bind_unix(path: str) -> socket.socket:
    """A listening unix socket in the place of a dead one, mode 0600. Raises RequestFailed."""
    refusal = f"listen unix {path}"
    if not path or len(os.fsencode(path)) > MAX_UNIX_PATH or "\0" in path:
        detail = f"a socket's path has 1 to {MAX_UNIX_PATH} bytes"
        raise RequestFailed.because("bad-request", f"{refusal}: bind: invalid argument", detail)
    try:
        return listen(UnixEndpoint(os.path.abspath(path)))
    except StartError as error:
        if isinstance(error.__cause__, OSError):
            raise _refused(refusal, error.__cause__) from error
        raise RequestFailed.because("in-use", f"{refusal}: bind: address already in use", str(error)) from error


def bound_name(sock: socket.socket) -> str:
    """Where a socket is bound: ``127.0.0.1:80``, ``[::]:80``, ``/run/s``."""
    name = sock.getsockname()
    return name if isinstance(name, str) else join_host_port(name[0], name[1])


def unlink_socket(path: str, inode: int) -> None:
    """Remove the file of a unix socket, unless it is another's by now."""
    with contextlib.suppress(FileNotFoundError):
        if Path(path).lstat().st_ino == inode:
            os.unlink(path)


def overlap(one: str, other: str) -> bool:
    """Whether two hosts cannot both have a port: the same, or one of them stands for all."""
    return one == other or not {one, other}.isdisjoint(("", ANY_IPV4, ANY_IPV6))


async def holder(protocol: str, host: str, port: int) -> str:
    """Which process has a port, as far as this user may know."""
    return await asyncio.to_thread(_find_holder, protocol, host, port)


def _find_holder(protocol: str, host: str, port: int) -> str:
    for connection in psutil.net_connections(protocol):
        address = connection.laddr
        listening = protocol == "udp" or connection.status == psutil.CONN_LISTEN
        if listening and address and address.port == port and overlap(address.ip, host) and connection.pid:
            with contextlib.suppress(psutil.Error):
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "a process this user cannot see"


async def _resolve(protocol: str, host: str, port: int) -> SocketAddress:
    """The address of a local host, IPv4 where it has both."""
    kind = KINDS[protocol]
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)
    except (OSError, TimeoutError, UnicodeError) as error:
        listening = "listen tcp: " if protocol == "tcp" else ""
        raise RequestFailed.because("bad-request", f"{listening}lookup {host}: no such host") from error
    return min(found, key=lambda entry: entry[0] != socket.AF_INET)[4]


def _bind_to_every(kind: int, port: int) -> socket.socket:
    """Of IPv4 and IPv6, as far as this host has them."""
    try:
        return _bind(kind, (ANY_IPV6, port), dual_stack=True)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bind(kind, (ANY_IPV4, port))


def _bind(kind: int, address: SocketAddress, dual_stack: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET, kind)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _refused(listening: str, error: OSError) -> RequestFailed:
    code: FailureCode = "in-use" if error.errno == errno.EADDRINUSE else "bad-request"
    return RequestFailed.because(code, f"{listening}: bind: {(error.strerror or str(error)).lower()}")
