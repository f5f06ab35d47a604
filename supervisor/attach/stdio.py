"""The VM of whoever started the service: frames on its standard input and output, a 2-byte little-endian length each.

Two pipes, or one socket as both. They are the VM's link from the start: the service itself, and every process it
starts, has nothing as standard input and standard error as standard output from then on, so that nothing but frames
can get in between.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import SplitResult

from proto.messages import Framing
from supervisor.attach.link import Link, PipeLink, SocketLink
from supervisor.attach.listener import Attachment, Host, Listener
from supervisor.attach.options import NO_OPTIONS, Options
from supervisor.endpoints import Endpoint, UrlForm
from supervisor.errors import StartError

STDIN, STDOUT, STDERR = 0, 1, 2


@dataclass(frozen=True, slots=True)
class StdioEndpoint(Endpoint):
    """The service's own standard input and output."""

    def __str__(self) -> str:
        return "stdio"


def _parse(url: SplitResult) -> Endpoint | None:
    return StdioEndpoint() if not url.geturl() else None


class StdioListener(Listener):
    """One VM, which is there when the service starts."""

    kind = "stdio"
    title = "standard I/O"
    framing: ClassVar[Framing] = "stream16"
    forms = (UrlForm("", _parse),)
    lasts = False

    def __init__(self, endpoint: Endpoint, options: Options = NO_OPTIONS) -> None:
        assert not options.allow_uid, "nobody is known there"
        self.endpoint = endpoint
        sys.stdout.flush()
        self._link: Link | None = take_over(STDIN, STDOUT)

    def start(self, host: Host) -> None:
        assert self._link is not None
        link, self._link = self._link, None
        host.attach(Attachment(link, self.kind, self.framing, str(self.endpoint), f"pid={os.getppid()}"))

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    def attach_hint(self) -> str:
        return "it is there: frames with a 2-byte little-endian length on standard input and output"


def take_over(to_read: int, to_write: int) -> Link:
    """The two descriptors as a link; in their places come nothing to read, and standard error to write.

    Raises StartError when they are neither pipes nor sockets: a terminal or a file carries no frames.
    """
    found = [os.fstat(fd) for fd in (to_read, to_write)]
    for status, name in zip(found, ("input", "output"), strict=True):
        if not stat.S_ISFIFO(status.st_mode) and not stat.S_ISSOCK(status.st_mode):
            raise StartError(f"cannot attach a VM to standard {name}: it is neither a pipe nor a socket")
    link: Link
    if os.path.samestat(*found):
        link = SocketLink(socket.socket(fileno=os.dup(to_read)))
    else:
        link = PipeLink(os.dup(to_read), os.dup(to_write))
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, to_read)
    os.close(nothing)
    os.dup2(STDERR, to_write)
    return link
