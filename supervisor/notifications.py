"""Telling another program what happens to VMs: gvproxy's notifications.

Each is one connection to a unix socket, one JSON object, a newline, and the end of the connection::

    {"notification_type":"ready"}                                       VMs can attach
    {"notification_type":"connection_established","mac_address":MAC}    the first frame of a guest
    {"notification_type":"connection_closed","mac_address":MAC}         its VM is gone
    {"notification_type":"hypervisor_error"}                            where VMs attach, something fails

They are sent in their order, one at a time. What cannot be sent is logged and lost; it is not tried again.
"""

from __future__ import annotations

import asyncio
import json
import logging

from proto.codec import Message
from proto.events import GuestKnown, VmDetached
from supervisor.endpoints import UnixEndpoint

MAX_WAITING = 100
SEND_TIMEOUT = 5.0
"""s for the other program to take one."""
MAX_MACS_PER_VM = 256
"""A guest that changes its MAC for ever is told of so often."""

log = logging.getLogger(__name__)


class Notifications:
    """Sends to `endpoint`, on the running loop, until `close`; None: nobody is told."""

    def __init__(self, endpoint: UnixEndpoint | None) -> None:
        self._path = endpoint.path if endpoint is not None else ""
        self._waiting: asyncio.Queue[dict[str, str]] = asyncio.Queue(MAX_WAITING)
        self._macs: dict[str, dict[str, None]] = {}
        """By VM, those that are connected."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def ready(self) -> None:
        """VMs can attach."""
        self._put("ready")

    def hypervisor_error(self) -> None:
        """VMs cannot attach as they should."""
        self._put("hypervisor_error")

    def on_event(self, event: Message) -> None:
        """An event of the service's."""
        match event:
            case GuestKnown(vm_id, mac):
                macs = self._macs.setdefault(vm_id, {})
                moved = any(mac in others for others in self._macs.values())
                if not moved and len(macs) < MAX_MACS_PER_VM:
                    macs[mac] = None
                    self._put("connection_established", mac)
            case VmDetached(vm_id):
                for mac in self._macs.pop(vm_id, {}):
                    self._put("connection_closed", mac)

    async def close(self, patience: float) -> None:
        """Send what waits, for as long as `patience` seconds, and no more."""
        try:
            async with asyncio.timeout(patience):
                await self._waiting.join()
        except TimeoutError:
            log.warning("unable to send %d notifications: %s takes none", self._waiting.qsize(), self._path)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _put(self, kind: str, mac: str = "") -> None:
        if not self._path:
            return
        notification = {"notification_type": kind} | ({"mac_address": mac} if mac else {})
        try:
            self._waiting.put_nowait(notification)
        except asyncio.QueueFull:
            log.warning("unable to send notification")

    async def _run(self) -> None:
        while True:
            notification = await self._waiting.get()
            try:
                async with asyncio.timeout(SEND_TIMEOUT):
                    await self._send(json.dumps(notification, separators=(",", ":")).encode() + b"\n")
            except OSError as error:  # TimeoutError is one
                log.error("cannot send notification to %s: %s", self._path, error.strerror or "it takes too long")
            finally:
                self._waiting.task_done()

    async def _send(self, line: bytes) -> None:
        _, writer = await asyncio.open_unix_connection(self._path)
        try:
            writer.write(line)
            await writer.drain()
        finally:
            writer.close()
        await writer.wait_closed()
