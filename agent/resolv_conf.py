"""``/etc/resolv.conf``: what DHCP said about names while the agent runs, what was there before when it ends.

The file is replaced in one step, so that no reader sees half of it; a symbolic link (systemd-resolved's) is replaced
itself, not what it leads to, which belongs to another program. Where the directory does not allow that (a file mounted
into a container, a read-only /etc) the file is written in place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

MAX_SERVERS = 3
"""MAXNS of the C library: more are not read."""
MODE = 0o644


class ResolvConf:
    """One such file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before: bytes | None = None
        """None: there was none."""
        self._link: str | None = None
        """Where it led to, where it was a symbolic link."""
        self._written: bytes | None = None

    def write(self, servers: Sequence[IPv4Address], search: Sequence[str]) -> None:
        """Name these servers and domains; without servers the file stays as it is. Raises OSError."""
        if not servers:
            return
        lines = [f"search {' '.join(search)}"] if search else []
        lines += [f"nameserver {server}" for server in servers[:MAX_SERVERS]]
        content = "".join(f"{line}\n" for line in lines).encode()
        if self._written is None:
            self._remember()
        elif content == self._written:
            return
        self._put(content)
        self._written = content

    def restore(self) -> None:
        """Put back what was there, unless another program has written the file since. Raises OSError."""
        if self._written is None or self._read() != self._written:
            return
        self._written = None
        link = self._link
        if link is not None and not self._path.is_symlink():
            self._replace(lambda temporary: os.symlink(link, temporary))
        elif self._before is not None:
            self._put(self._before)
        else:
            Path(os.path.realpath(self._path)).unlink()

    def _remember(self) -> None:
        self._before = self._read()
        self._link = os.readlink(self._path) if self._path.is_symlink() else None

    def _read(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self._path.read_bytes()
        return None

    def _put(self, content: bytes) -> None:
        def create(temporary: Path) -> None:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
                os.fchmod(file.fileno(), MODE)
                file.write(content)

        try:
            self._replace(create)
        except OSError:
            self._path.write_bytes(content)

    def _replace(self, create: Callable[[Path], None]) -> None:
        """Put what `create` makes in the file's place."""
        temporary = self._path.with_name(f".{self._path.name}.moorage-{os.getpid()}")
        try:
            create(temporary)
            os.replace(temporary, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
