"""Where something listens, as URLs spell it (``unix:///PATH``, ``tcp://HOST:PORT``, ...), and binding it.

Who takes a URL says which forms of it: a tuple of `UrlForm`, to which a module may add its own. A unix socket left
behind by a service that is gone (nobody listens) is replaced; one that somebody listens on, or a file that is no
socket, is an error. So is any file where the endpoint is to be bound as other programs bind (`UnixEndpoint.is_plain`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from supervisor.errors import ListenError, StartError

MAX_UNIX_PATH = 107
"""Bytes; sizeof(sun_path) - 1, unix(7). Other systems have less, none has more."""
BACKLOG = 4096
MAX_U32 = 0xFFFFFFFF
UNIXPACKET_SCHEME = "unixpacket"
"""Of unix sockets of type SEQPACKET."""


class Endpoint:
    """What a URL names; as text it is the URL again."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class UnixEndpoint(Endpoint):
    """A socket in the file system."""

    path: str
    scheme: str = "unix"
    is_plain: bool = False
    """Bound as by programs that do no more: its mode is what the umask leaves of 0777, and it replaces nothing."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpEndpoint(Endpoint):
    """A host address and port; port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{join_host_port(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class VsockEndpoint(Endpoint):
    """A port of AF_VSOCK, vsock(7)."""

    cid: int | None
    """None: any that is this machine's."""
    port: int

    def __str__(self) -> str:
        return f"vsock://{'' if self.cid is None else self.cid}:{self.port}"


StreamEndpoint = UnixEndpoint | TcpEndpoint | VsockEndpoint


@dataclass(frozen=True, slots=True)
class UrlForm:
    """One way to spell an endpoint."""

    text: str
    """As errors and help show it: ``unix:///PATH``"""
    parse: Callable[[SplitResult], Endpoint | None]
    """None: the URL is not of this form. Raises ValueError where it is, but cannot be meant."""
    takes_query: bool = False


def unix_form(scheme: str) -> UrlForm:
    """``SCHEME:///PATH``."""

    def parse(url: SplitResult) -> Endpoint | None:
        if url.scheme != scheme or url.netloc or not url.path.startswith("/"):
            return None
        if len(os.fsencode(url.path)) > MAX_UNIX_PATH:
            raise ValueError(f"expected a socket path of at most {MAX_UNIX_PATH} bytes, got {url.path!r}")
        return UnixEndpoint(url.path, scheme)

    return UrlForm(f"{scheme}:///PATH", parse)


def _parse_tcp(url: SplitResult) -> Endpoint | None:
    try:
        host, port = url.hostname, url.port
    except ValueError:
        return None
    is_whole = url.scheme == "tcp" and url.path in ("", "/")
    return TcpEndpoint(host, port) if is_whole and host and port is not None else None


def _parse_vsock(url: SplitResult) -> Endpoint | None:
    # Ports of vsock have 32 bits, which urllib does not expect.
    match = re.fullmatch(r"(\d{0,10}):(\d{1,10})", url.netloc)
    if url.scheme != "vsock" or match is None or url.path not in ("", "/"):
        return None
    cid = int(match[1]) if match[1] else None
    return VsockEndpoint(cid, int(match[2])) if max(cid or 0, int(match[2])) < MAX_U32 else None


UNIX = unix_form("unix")
UNIXPACKET = unix_form(UNIXPACKET_SCHEME)
TCP = UrlForm("tcp://HOST:PORT", _parse_tcp)
VSOCK = UrlForm("vsock://:PORT", _parse_vsock)
VSOCK_WITH_CID = UrlForm("vsock://CID:PORT", _parse_vsock)


def parse_endpoint(url: str, forms: Sequence[UrlForm] = (UNIX, TCP), prefix: str = "") -> Endpoint:
    """The endpoint a URL names. Raises ValueError that says what was expected, `prefix` before each form."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is not None and not (parts.fragment or parts.username):
        for form in forms:
            endpoint = form.parse(parts) if form.takes_query or not parts.query else None
            if endpoint is not None:
                return endpoint
    expected = " or ".join(prefix + form.text for form in forms)
    raise ValueError(f"expected {expected}, got {prefix + url!r}")


def join_host_port(host: str, port: int) -> str:
    """``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(endpoint: StreamEndpoint, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking listening socket; `kind` is a unix one's type. Raises StartError that names the address."""
    try:
        match endpoint:
            case UnixEndpoint():
                sock = bind_unix(endpoint, kind)
            case VsockEndpoint():
                sock = _bind_vsock(endpoint)
            case TcpEndpoint():
                sock = _bind_tcp(endpoint)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise ListenError(endpoint, error) from error
    sock.setblocking(False)
    return sock


def bound_endpoint(sock: socket.socket) -> StreamEndpoint:
    """Where a socket in fact listens, its port filled in, or the end of a connection that it accepted."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UnixEndpoint(address)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return TcpEndpoint(address[0], address[1])
    return VsockEndpoint(None if address[0] == socket.VMADDR_CID_ANY else address[0], address[1])


def endpoint_file(endpoint: Endpoint) -> tuple[int, int] | None:
    """Device and inode of what is on a unix endpoint's path: a socket bound there keeps both while it is open."""
    if isinstance(endpoint, UnixEndpoint):
        with contextlib.suppress(FileNotFoundError):
            file = os.stat(endpoint.path)
            return file.st_dev, file.st_ino
    return None


def unlink_endpoint(endpoint: Endpoint) -> None:
    """Remove a unix endpoint's file, if it is there."""
    if isinstance(endpoint, UnixEndpoint):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint.path)


def bind_unix(endpoint: UnixEndpoint, kind: int) -> socket.socket:
    """A socket of that type (``SOCK_STREAM``, ...) on the endpoint's path, with mode 0600 unless it is plain.

    Raises OSError, and StartError where somebody listens there already or another kind of file is in the way.
    """
    if not endpoint.is_plain:
        _remove_stale_socket(endpoint, kind)
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        with contextlib.nullcontext() if endpoint.is_plain else _umask(0o177):
            sock.bind(endpoint.path)
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _remove_stale_socket(endpoint: UnixEndpoint, kind: int) -> None:
    try:
        mode = os.stat(endpoint.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on {endpoint}: the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)  # a full backlog answers EAGAIN instead of making us wait
        try:
            probe.connect(endpoint.path)
        except ConnectionRefusedError:
            os.unlink(endpoint.path)
            return
        except OSError:
            pass
    raise StartError(f"cannot listen on {endpoint}: address already in use")


def _bind_tcp(endpoint: TcpEndpoint) -> socket.socket:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_vsock(endpoint: VsockEndpoint) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except (AttributeError, OSError) as error:
        raise StartError(
            f"cannot listen on {endpoint}: this system has no AF_VSOCK; on Linux `modprobe vhost_vsock` brings it, "
            "elsewhere a hypervisor brings a VM's vsock to a unix socket"
        ) from error
    try:
        sock.bind((socket.VMADDR_CID_ANY if endpoint.cid is None else endpoint.cid, endpoint.port))
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        raise StartError(
            f"cannot listen on {endpoint}: {error.strerror}; {endpoint.cid} is no context id of this machine: leave it "
            "out, or `modprobe vsock_loopback` for 1"
        ) from error
    return sock
