"""What workers say, and what comes of it. A worker speaks for its own VM only: anything else is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from proto.channels import EventPublisher
from proto.codec import Message
from proto.errors import RequestFailed
from proto.events import GuestKnown
from proto.guest_requests import GuestExpose, GuestUnexpose, ListGuestForwards
from proto.messages import Empty, GuestSeen, Hello, LeaseRelease, LeaseRequest, LinkClosed, WorkerStats
from supervisor.announcer import Announcer
from supervisor.forwards.table import Forwards
from supervisor.guest_forwards import GuestForwards
from supervisor.switch import Switch
from supervisor.vms import Vm, Vms

log = logging.getLogger(__name__)


class WorkerMessages:
    """Dispatches by message type; `handle` is the responder's handler."""

    def __init__(
        self, vms: Vms, forwards: Forwards, switch: Switch, events: EventPublisher, announcer: Announcer
    ) -> None:
        self._vms = vms
        self._forwards = forwards
        self._guest_forwards = GuestForwards(forwards)
        self._switch = switch
        self._events = events
        self._announcer = announcer
        self._handlers: dict[type, Callable[[Vm, Any], Awaitable[Message | None]]] = {
            Hello: self._hello,
            LeaseRequest: self._request_lease,
            LeaseRelease: self._release_lease,
            GuestSeen: self._guest_seen,
            LinkClosed: self._link_closed,
            WorkerStats: self._stats,
            ListGuestForwards: self._list_forwards,
            GuestExpose: self._expose,
            GuestUnexpose: self._unexpose,
        }

    async def handle(self, peer: bytes, message: Message) -> Message | None:
        """Answer a worker. Raises RequestFailed."""
        vm = self._vms.get(peer.decode("utf-8", "replace"))
        handler = self._handlers.get(type(message))
        if vm is None or handler is None or message.vm_id != vm.id:
            log.warning("refused %s from %r", type(message).__name__, peer[:60])
            raise RequestFailed.because("bad-request", f"{type(message).__name__} is not yours to send")
        return await handler(vm, message)

    async def _hello(self, vm: Vm, message: Hello) -> None:
        await self._vms.greet(vm, message.pid)

    async def _request_lease(self, vm: Vm, message: LeaseRequest) -> Message:
        now = time.time()
        lease = vm.network.request_lease(message, now)
        if message.commit:
            if vm.network.claim_mac(vm.id, lease.mac, now):
                self._know(vm, lease.mac)
            vm.ip = lease.ip
            log.info("%s has %s (%s)", vm.id, lease.ip, lease.mac)
            self._announcer.changed()
            await self._switch.identify(vm)
            await self._forwards.settle()
        return lease

    async def _release_lease(self, vm: Vm, message: LeaseRelease) -> None:
        vm.network.release_lease(message, time.time())
        if vm.ip == message.ip:
            vm.ip = ""
        self._announcer.changed()
        await self._switch.identify(vm)
        await self._forwards.settle()

    async def _guest_seen(self, vm: Vm, message: GuestSeen) -> None:
        now = time.time()
        if vm.network.other_owner(vm.id, message.mac):
            vm.warn_of(f"MAC {message.mac}")
            return
        if vm.network.claim_mac(vm.id, message.mac, now):
            self._know(vm, message.mac)
        may_use = not message.ip or vm.network.see(vm.id, message.mac, message.ip, now)
        await self._switch.identify(vm)
        if not may_use:
            vm.warn_of(message.ip)
        elif message.ip:
            vm.ip = message.ip
            await self._forwards.settle()

    def _know(self, vm: Vm, mac: str) -> None:
        if vm.mac != mac:
            vm.mac = mac
            self._events.publish(GuestKnown(vm.id, mac))

    async def _link_closed(self, vm: Vm, message: LinkClosed) -> None:
        if not message.by_guest or message.reason != "eof":
            log.warning("the link of %s is closed: %s", vm.id, message.reason)
        vm.close(message.reason[:200])

    async def _list_forwards(self, vm: Vm, _: ListGuestForwards) -> Message:
        return self._guest_forwards.list(vm)

    async def _expose(self, vm: Vm, message: GuestExpose) -> Message:
        await self._guest_forwards.expose(vm, message)
        return Empty()

    async def _unexpose(self, vm: Vm, message: GuestUnexpose) -> Message:
        await self._guest_forwards.unexpose(vm, message)
        return Empty()

    async def _stats(self, vm: Vm, message: WorkerStats) -> None:
        vm.counters_told = message.counters
        self._events.publish(message)
