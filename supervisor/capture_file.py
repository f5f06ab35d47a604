"""One pcapng file with the traffic of all VMs: an interface for each, whose frames its worker appends.

Every write is a whole number of blocks, and the file is opened for appending, so that the workers' blocks lie behind
one another whatever their order.
"""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

from proto import pcapng
from supervisor.errors import StartError

log = logging.getLogger(__name__)


class CaptureFile:
    """An empty one, in the place of whatever was there. Raises StartError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = itertools.count()
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"cannot capture to {path}: {error.strerror}") from error
        self._write(pcapng.section("moorage"))

    def fileno(self) -> int:
        """What a worker writes to."""
        return self._fd

    def add_interface(self, name: str) -> int:
        """Begin a VM's frames; the number of its interface."""
        self._write(pcapng.interface(name))
        return next(self._numbers)

    def close(self) -> None:
        """Write no more."""
        os.close(self._fd)

    def _write(self, block: bytes) -> None:
        try:
            os.write(self._fd, block)
        except OSError as error:
            log.error("the capture in %s is not complete: %s", self._path, error.strerror)
