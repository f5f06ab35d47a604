"""VMs on one network reach each other from worker to worker; here is who is connected with whom, and told of whom.

Every two workers of a shared network have a pair of datagram sockets, an end each: what comes by an end comes from that
VM and no other, a worker that does not read fills its own pairs alone, and no frame passes through the supervisor.
What a VM may call itself is decided here (`Realm.identity`) and told to its worker, which lets nothing else out, and to
all the others, which let nothing else in.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Iterator

from proto.codec import Message
from proto.switch import AddPeer, JoinSwitch, RemovePeer, SetGuest
from supervisor.vms import Vm, Vms, Worker

SOCKET_BUFFER = 1 << 20
"""Bytes that wait for one VM from one other; without privileges the system may allow less (net.core.wmem_max)."""
SO_SNDBUFFORCE = 32
"""Of Linux; Python does not name it."""

log = logging.getLogger(__name__)


class _Port:
    """One VM on the switch; `run` passes on to its worker what `put` leaves."""

    def __init__(self, vm: Vm, number: int) -> None:
        self.vm = vm
        self.number = number
        self.worker: Worker | None = None
        """Who is, or will be, told; None: nobody is there."""
        self.mac = ""
        self.ips: tuple[str, ...] = ()
        self._waiting: deque[tuple[Worker, Message, socket.socket | None]] = deque()
        self._wake = asyncio.Event()

    def put(self, message: Message, sock: socket.socket | None = None) -> None:
        """Tell the worker, when its turn comes; `sock` goes with the message."""
        assert self.worker is not None
        self._waiting.append((self.worker, message, sock))
        self._wake.set()

    def describe(self) -> AddPeer:
        """What others are told of this VM."""
        return AddPeer(self.number, self.mac, self.ips)

    async def run(self, vms: Vms) -> None:
        """Pass on for ever."""
        try:
            while True:
                while self._waiting:
                    worker, message, sock = self._waiting.popleft()
                    fds = [sock.fileno()] if sock is not None else []
                    try:
                        await vms.pass_descriptor(self.vm, worker, message, *fds)
                    finally:
                        if sock is not None:
                            sock.close()
                self._wake.clear()
                await self._wake.wait()
        finally:
            for _, _, sock in self._waiting:
                if sock is not None:
                    sock.close()


class Switch:
    """All VMs of all shared networks."""

    def __init__(self, vms: Vms) -> None:
        self._vms = vms
        self._ports: dict[str, _Port] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)

    async def settle(self) -> None:
        """See that every worker that is there is connected with those of its network, and no other."""
        for vm in self._vms:
            worker = vm.worker if vm.worker is not None and vm.worker.is_ready else None
            port = self._ports.get(vm.id)
            if port is None and worker is not None and vm.network.is_shared:
                port = self._add(vm)
            if port is not None and port.worker is not worker:
                port.worker = worker
                if worker is not None:
                    await self._connect(port)
        for vm_id in [vm_id for vm_id in self._ports if self._vms.get(vm_id) is None]:
            self._remove(vm_id)

    async def identify(self, vm: Vm) -> None:
        """A VM's MAC or addresses may have changed, and with them those of the VM that had them before.

        Its worker has been told when this returns: a guest that hears of its lease may use it at once.
        """
        named = self._ports.get(vm.id)
        if named is None:
            return
        _, ips = vm.network.identity(vm.id, time.time())
        for port in (*self._others(named), named):
            if port is named or not set(ips).isdisjoint(port.ips):
                await self._refresh(port)

    async def close(self) -> None:
        """Tell nobody anything any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _add(self, vm: Vm) -> _Port:
        port = self._ports[vm.id] = _Port(vm, next(self._numbers))
        port.mac, port.ips = vm.network.identity(vm.id, time.time())
        self._tasks[vm.id] = asyncio.get_running_loop().create_task(port.run(self._vms), name=f"switch: {vm.id}")
        return port

    def _remove(self, vm_id: str) -> None:
        port = self._ports.pop(vm_id)
        self._tasks.pop(vm_id).cancel()
        for other in self._others(port):
            other.put(RemovePeer(port.number))

    async def _connect(self, port: _Port) -> None:
        """A worker is new: tell it who its VM is, and connect it with all others."""
        port.put(JoinSwitch(port.vm.network.spec.port_security))
        for other in self._others(port):
            try:
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            except OSError as error:
                log.error("%s and %s do not reach each other: %s", port.vm.id, other.vm.id, error)
                continue
            for end in pair:
                _widen(end)
            port.put(other.describe(), pair[0])
            other.put(port.describe(), pair[1])
        await self._vms.tell(port.vm, SetGuest(port.mac, port.ips))

    async def _refresh(self, port: _Port) -> None:
        known = port.mac, port.ips
        port.mac, port.ips = port.vm.network.identity(port.vm.id, time.time())
        if known == (port.mac, port.ips):
            return
        for other in self._others(port):
            other.put(port.describe())
        await self._vms.tell(port.vm, SetGuest(port.mac, port.ips))

    def _others(self, port: _Port) -> Iterator[_Port]:
        """Ports of the same network with a worker to tell."""
        for other in self._ports.values():
            if other is not port and other.vm.network is port.vm.network and other.worker is not None:
                yield other


def _widen(sock: socket.socket) -> None:
    """Let more wait in a socket than is usual: what does not fit is lost."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
