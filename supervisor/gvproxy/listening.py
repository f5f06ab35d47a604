"""Where gvproxy's command line has VMs attach and the API listen, and gvproxy's sentences of what cannot be.

A flag that contradicts another, or a path that is taken, is a configuration that cannot be (ConfigError). A scheme that
gvproxy does not know, or an address that cannot be listened on, ends it once it runs.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from supervisor.attach.kinds import KINDS, ListenerSpec
from supervisor.attach.options import Options
from supervisor.endpoints import (
    TCP,
    UNIX,
    UNIXPACKET,
    VSOCK,
    VSOCK_WITH_CID,
    Endpoint,
    StreamEndpoint,
    UnixEndpoint,
    UrlForm,
    parse_endpoint,
)
from supervisor.errors import ConfigError, ListenError, StartError

KIND_OF = {"vpnkit": "hyperkit", "qemu": "qemu", "bess": "bess", "vfkit": "vfkit", "stdio": "stdio"}
"""Our name of what a VM attaches to, by gvproxy's, in the order in which gvproxy begins to listen."""
ENDING = ("qemu", "bess", "stdio")
"""Whose VM is the last."""
API_FORMS = (UNIX, TCP, VSOCK, VSOCK_WITH_CID, UNIXPACKET)
STREAM_SCHEMES = ("unix", "tcp", "vsock", "unixpacket")
SCHEMES = {"vfkit": ("unixgram",), "stdio": ("",)}
"""That gvproxy knows, where they are not those."""


@dataclass(slots=True)
class Listening:
    """What is listened on."""

    listeners: list[ListenerSpec] = field(default_factory=list)
    api: list[StreamEndpoint] = field(default_factory=list)
    services: list[StreamEndpoint] = field(default_factory=list)
    failure: str = ""
    """Why gvproxy would end as soon as it has started."""
    told: dict[object, str] = field(default_factory=dict)
    """By endpoint, what is said when the system refuses it, up to the reason."""

    def explain(self, error: StartError) -> str:
        """In Go's words where the system refuses an address: ``listen unix /tmp/s: bind: address already in use``."""
        if isinstance(error, ListenError) and error.endpoint in self.told:
            return f"{self.told[error.endpoint]}: bind: {error.reason}"
        return str(error)

    def add_listener(self, name: str, url: str) -> None:
        """Where a VM attaches. Raises ConfigError."""
        kind = KIND_OF[name]
        schemes = SCHEMES.get(name, STREAM_SCHEMES)
        try:
            endpoint = self._endpoint(f"{name} listen error", url, KINDS[kind].forms, schemes)
        except ValueError as error:
            raise ConfigError(f"-listen-{name}: {error}") from error
        if endpoint is not None:
            self.listeners.append(ListenerSpec(kind, endpoint, Options(end_with_vm=name in ENDING)))

    def api_at(self, url: str) -> list[StreamEndpoint]:
        """Where the API listens; nowhere when that cannot be."""
        try:
            endpoint = self._endpoint("cannot listen", url, API_FORMS, STREAM_SCHEMES)
        except ValueError as error:
            self._fail(f"cannot listen: {error}")
            return []
        assert endpoint is None or isinstance(endpoint, StreamEndpoint), endpoint
        return [] if endpoint is None else [endpoint]

    def _endpoint(self, trouble: str, url: str, forms: Sequence[UrlForm], schemes: Sequence[str]) -> Endpoint | None:
        """None: gvproxy does not know the scheme. Raises ValueError where the URL is none of `forms`."""
        given = urlsplit(url)
        if given.scheme not in schemes:
            self._fail(f"{trouble}: unexpected scheme")
            return None
        if given.scheme == "vsock":
            url = f"vsock://{given.netloc}"  # a path means nothing there
        endpoint = parse_endpoint(_with_host(url), forms)
        if isinstance(endpoint, UnixEndpoint):  # whoever the umask lets may connect, as Go's `net.Listen` leaves it
            endpoint = dataclasses.replace(endpoint, path=unquote(endpoint.path), is_plain=True)
            if "\0" in endpoint.path:
                raise ValueError(f"expected a path without a zero byte, got {url!r}")
        self.told[endpoint] = f"{trouble}: listen {given.scheme} {given.netloc or unquote(given.path)}"
        return endpoint

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason


def choose_listening(attach: Mapping[str, str], api: Sequence[str], services: str) -> Listening:
    """What is asked for: by gvproxy's names where VMs attach, and where the API listens. Raises ConfigError."""
    _check(attach)
    listening = Listening()
    for url in api:
        listening.api += listening.api_at(url)
    if services:
        listening.services += listening.api_at(services)
    for name in KIND_OF:
        if attach[name]:
            listening.add_listener(name, "" if name == "stdio" else attach[name])
    return listening


def _check(attach: Mapping[str, str]) -> None:
    for name, scheme in (("qemu", "unix"), ("bess", "unixpacket"), ("vfkit", "unixgram")):
        url = _split(name, attach[name])
        if name != "qemu" and attach[name] and url.scheme != scheme:
            raise ConfigError(f"{name} listen address must be {scheme}:// address")
        path = unquote(url.path)
        if url.scheme == scheme and os.path.lexists(path):
            raise ConfigError(f'"{path}" already exists')
    for one, other in (("qemu", "vpnkit"), ("bess", "vpnkit"), ("qemu", "bess")):
        if attach[one] and attach[other]:
            raise ConfigError(f"cannot use {one} and {other} protocol at the same time")


def _split(name: str, url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"invalid value for listen-{name}: {url}: {error}") from error


def _with_host(url: str) -> str:
    """Go listens on every address, IPv4 and IPv6, where none is given or 0.0.0.0."""
    host = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    return re.sub(r"(?i)^tcp://(0\.0\.0\.0)?:", f"tcp://{host}:", url)
