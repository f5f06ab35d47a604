"""The host's resolver configuration, watched: name servers and search domains of resolv.conf(5).

A host without any is no failure: guests then resolve only the gateway's own zones.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
CHECK_INTERVAL = 1.0
"""s"""
MAX_NAMESERVERS = 8
MAX_SEARCH_DOMAINS = 32
MAX_SIZE = 65536
"""Bytes read of the file."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HostResolver:
    """What the host asks."""

    nameservers: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()


def parse(text: str) -> HostResolver:
    """A resolv.conf's name servers, and its last ``search`` or ``domain`` line. Other lines are skipped."""
    nameservers: dict[str, None] = {}
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        match words:
            case ["nameserver", address, *_] if _is_address(address):
                nameservers[address] = None
            case ["search" | "domain", *domains]:
                search = tuple(domains[:MAX_SEARCH_DOMAINS])
    return HostResolver(tuple(nameservers)[:MAX_NAMESERVERS], search)


class ResolverWatch:
    """Reads the file when it changes and tells."""

    def __init__(self, path: Path = RESOLV_CONF) -> None:
        self._path = path
        self._signature: tuple[int, ...] | None = None
        self.current = HostResolver()
        self.check()

    def check(self) -> bool:
        """Read the file if it is another than last time; True when what it says changed."""
        signature = self._sign()
        if signature == self._signature:
            return False
        self._signature = signature
        before, self.current = self.current, self._read()
        return self.current != before

    async def watch(self, on_change: Callable[[HostResolver], Awaitable[None]]) -> None:
        """Check for ever."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            if self.check():
                log.info("the host's resolver changed: %s", ", ".join(self.current.nameservers) or "no name server")
                await on_change(self.current)

    def _sign(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._path)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev

    def _read(self) -> HostResolver:
        try:
            with self._path.open("rb") as file:
                return parse(file.read(MAX_SIZE).decode("utf-8", "replace"))
        except OSError as error:
            log.warning("no resolver: %s cannot be read: %s", self._path, error.strerror)
            return HostResolver()


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
