"""QEMU's datagram links: a frame a datagram, one VM at a time.

QEMU names the listener's path with every frame that it sends, so the socket there is the VM's for as long as the VM is;
the kernel refuses the frames of another. When the VM is gone, a fresh socket takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import ClassVar

from supervisor.attach.datagram import Datagram, DatagramLink, DatagramListener
from supervisor.endpoints import UNIX, UrlForm

log = logging.getLogger(__name__)


class QemuDatagramListener(DatagramListener):
    """QEMU's ``-netdev dgram``."""

    kind = "qemu-dgram"
    title = "QEMU (datagrams)"
    forms: ClassVar[tuple[UrlForm, ...]] = (UNIX,)

    def attach_hint(self) -> str:
        path = self.endpoint.path
        return (
            f"-netdev dgram,id=net0,local.type=unix,local.path={path}.vm,remote.type=unix,remote.path={path} "
            "-device virtio-net-pci,netdev=net0,mac=5a:94:ef:e4:0c:ee"
        )

    def _on_sender(self, sock: socket.socket, first: Datagram) -> None:
        asyncio.get_running_loop().remove_reader(sock)
        self._sock = None
        if not self._attach_directly(sock, first, [first]):
            self._reopen()

    def _on_link_closed(self, link: DatagramLink) -> None:
        super()._on_link_closed(link)
        self._reopen()

    def _watch(self) -> None:
        super()._watch()
        if self._sock is None and not self._links:
            self._reopen()  # it did not work before

    def _reopen(self) -> None:
        if self._host is None:
            return
        try:
            self._sock = self._replace_socket()
        except OSError as error:
            log.error("cannot listen on %s again: %s", self.endpoint, error)
            return
        self._listen()
