"""Tap devices with offloads: a network namespace, a container's or the host's own, is the guest.

The one kind that nobody connects to: the device is opened when the service starts, and is a VM from then on, until the
device or its namespace goes away. An open device keeps its namespace alive (tun(4) holds it), so nothing on the link
would tell that the container has ended; therefore the namespace's path is looked at now and then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast
from urllib.parse import SplitResult, parse_qsl

from proto.messages import Framing
from supervisor.attach.link import Link
from supervisor.attach.listener import Attachment, Host, Listener
from supervisor.attach.options import NO_OPTIONS, Options
from supervisor.children import python
from supervisor.endpoints import Endpoint, UrlForm
from supervisor.errors import StartError

OPENING_TIMEOUT = 10.0
WATCH_INTERVAL = 1.0
"""s between two looks at the namespace's path."""
INTERFACE_NAME = re.compile(r"[^\s/:]{1,15}")
"""IFNAMSIZ without its final zero; the kernel's dev_valid_name()."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TapEndpoint(Endpoint):
    """A tap device."""

    name: str
    netns: str = ""
    """Path of the network namespace it is in; empty: the service's own."""

    def __str__(self) -> str:
        return f"tap:///{self.name}" + (f"?netns={self.netns}" if self.netns else "")


def _parse_tap(url: SplitResult) -> TapEndpoint | None:
    if url.scheme != "tap" or url.netloc:
        return None
    name = url.path.removeprefix("/")
    if not INTERFACE_NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"expected the name of a network device behind tap:///, got {name!r}")
    if not url.query:
        return TapEndpoint(name)
    match parse_qsl(url.query):
        case [("netns", path)] if path.startswith("/"):
            return TapEndpoint(name, path)
        case [("pid", pid)] if pid.isascii() and pid.isdigit():
            return TapEndpoint(name, f"/proc/{pid}/ns/net")
    raise ValueError(f"expected netns=/PATH or pid=PID behind the question mark, got {url.query!r}")


TAP = UrlForm("tap:///NAME[?netns=/PATH or ?pid=PID]", _parse_tap, takes_query=True)


class TapLink(Link):
    """An open tap device."""

    def __init__(self, fd: int) -> None:
        self._fds = [fd]

    def filenos(self) -> Sequence[int]:
        return self._fds

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


class TapListener(Listener):
    """One tap device. It is opened by `start`, which raises StartError when that does not work."""

    kind = "tap"
    title = "namespace"
    forms = (TAP,)
    framing: ClassVar[Framing] = "tap-vnet"

    def __init__(self, endpoint: Endpoint, options: Options = NO_OPTIONS) -> None:
        assert isinstance(endpoint, TapEndpoint), endpoint
        self.endpoint: TapEndpoint = endpoint
        self._watch: asyncio.TimerHandle | None = None

    def start(self, host: Host) -> None:
        identity = self._namespace()
        if self.endpoint.netns and identity is None:
            raise StartError(f"cannot open {self.endpoint}: there is no {self.endpoint.netns}")
        fd, framing = self._open(host.mtu)
        gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        host.attach(Attachment(TapLink(fd), self.kind, framing, str(self.endpoint), self.endpoint.netns, gone=gone))
        if identity is not None:
            self._look(identity, gone)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def attach_hint(self) -> str:
        enter = f"nsenter --net={self.endpoint.netns} " if self.endpoint.netns else ""
        return f"{enter}udhcpc -i {self.endpoint.name}"

    def _open(self, mtu: int) -> tuple[int, Framing]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            arguments = (str(theirs.fileno()), self.endpoint.name, str(mtu), self.endpoint.netns)
            try:
                done = subprocess.run(
                    python("supervisor.attach.tap_device", *arguments),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=OPENING_TIMEOUT,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise StartError(f"cannot open {self.endpoint}: {error}") from error
            if done.returncode != 0:
                raise StartError(f"cannot open {self.endpoint}: {_last_line(done.stderr)}")
            framing, fds, _, _ = socket.recv_fds(ours, 64, 1)
        return fds[0], cast("Framing", framing.decode())

    def _namespace(self) -> tuple[int, int] | None:
        """Which namespace is at the path now."""
        try:
            found = os.stat(self.endpoint.netns)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _look(self, identity: tuple[int, int], gone: asyncio.Future[str]) -> None:
        if self._namespace() != identity:
            log.info("%s is gone", self.endpoint.netns)
            gone.set_result("its network namespace is gone")
            return
        self._watch = asyncio.get_running_loop().call_later(WATCH_INTERVAL, self._look, identity, gone)


def _last_line(text: str) -> str:
    """What a program said last."""
    return next(reversed(text.strip().splitlines()), "no reason was told")
