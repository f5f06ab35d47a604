"""Every forward: opened here, served by the worker of the VM that has the address, or over SSH by a carrier.

The socket of a forward is the supervisor's for as long as the forward exists; who serves it gets a duplicate. So a bind
error is the caller's error, and the port stays ours while a worker is replaced or a VM reboots. The error texts are
gvproxy's, which its users match; what they do not say is in a failure's `detail`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from proto.errors import ChannelError, RequestFailed
from proto.messages import (
    AddForward,
    CallGuest,
    Expose,
    Forward,
    ForwardProtocol,
    ForwardSource,
    RemoveForward,
    Unexpose,
)
from proto.ssh import CarrySsh
from supervisor.errors import StartError
from supervisor.forwards.addresses import GuestAddress, parse_local, parse_remote, redacted
from supervisor.forwards.sockets import KINDS, bind, bind_unix, bound_name, holder, overlap, unlink_socket
from supervisor.forwards.ssh import SshForward
from supervisor.forwards.unserved import Unserved
from supervisor.leases import MAC
from supervisor.state import State
from supervisor.vms import Vm, Vms, Worker

REMOVE_TIMEOUT = 2.0
"""s for a worker to close a forward's descriptor."""

log = logging.getLogger(__name__)


class _Entry:
    def __init__(
        self, forward_id: int, asked: str, forward: Forward, sock: socket.socket, guest: GuestAddress | None
    ) -> None:
        self.id = forward_id
        self.asked = asked
        """The local end as it was asked for: with port 0, where `forward` has the port allocated."""
        self.forward = forward
        self.sock = sock
        self.inode = os.stat(forward.bound).st_ino if forward.protocol == "unix" else 0
        self.guest = guest
        """None: not for a worker, but carried over SSH."""
        self.ssh: SshForward | None = None
        self.unserved = Unserved(sock)
        self.vm_id = ""
        self.worker: Worker | None = None
        """Who serves it."""
        self.guest_ip = ""
        """What the worker was told, which for a name is not for ever."""

    @property
    def protocol(self) -> ForwardProtocol:
        return self.forward.protocol

    def close(self) -> None:
        self.unserved.stop()
        if self.ssh is not None:
            self.ssh.close()
        self.sock.close()
        if self.protocol == "unix":
            unlink_socket(self.forward.bound, self.inode)


class Forwards:
    """All forwards. `find_vm` says which VM has an address of a network, `find_address` which address a name has; both
    may be told which VM is meant."""

    def __init__(
        self,
        state: State,
        vms: Vms,
        find_vm: Callable[[str, str, str], Vm | None],
        find_address: Callable[[str, str, str], str],
        source: ForwardSource = "keep",
        dual_stack: bool = False,
        carrier_env: Mapping[str, str] | None = None,
    ) -> None:
        self._state = state
        self._vms = vms
        self._find_vm = find_vm
        self._find_address = find_address
        self._source = source
        self._dual_stack = dual_stack
        self._carrier_env = carrier_env or {}
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._finishing: dict[SshForward, asyncio.Task[None]] = {}
        self._ids = itertools.count(1)
        self._moving = asyncio.Lock()

    def list(self) -> tuple[Forward, ...]:
        """All forwards, sorted by local address, then protocol."""
        entries = sorted(self._entries.values(), key=lambda entry: (entry.forward.local, entry.protocol))
        return tuple(map(_described, entries))

    async def open_configured(self, wanted: Iterable[Expose]) -> None:
        """Open the forwards that are there at every start. Raises StartError when one cannot be opened."""
        for asked in wanted:
            try:
                await self._open(asked)
            except RequestFailed as error:
                if error.failure.detail:
                    log.error("%s: %s", error.failure.message, error.failure.detail)
                raise StartError(f"cannot add network services: {error.failure.message}") from error

    async def restore(self) -> None:
        """Open the forwards of an earlier run; one that cannot be opened is logged, and tried again at the next."""
        for forward in self._state.forwards():
            if (forward.protocol, forward.local) in self._entries:
                continue  # configured by now
            try:
                await self._open(
                    Expose(forward.local, forward.remote, forward.protocol, forward.network, forward.vm, forward.source)
                )
            except RequestFailed as error:
                log.error("forward %s/%s is not restored: %s", forward.local, forward.protocol, error)

    async def expose(self, asked: Expose) -> Forward:
        """Forward a port. Raises RequestFailed: ``bad-request``, ``conflict`` (already forwarded), ``in-use``,
        ``not-found`` (nobody has that name)."""
        entry = await self._open(asked, check_name=True)
        if not asked.vm or MAC.fullmatch(asked.vm):  # an id means something only while this process lives
            self._state.save_forward(entry.forward)
        async with self._moving:
            await self._settle(entry)
        return _described(entry)

    async def unexpose(self, asked: Unexpose, mine: Callable[[Forward], bool] = lambda _: True) -> None:
        """Stop a forward of those that are `mine`, by its local end as it is listed, or as it was asked for; its
        connections go on. Raises RequestFailed: ``not-found``, ``conflict`` (several were asked for like that)."""
        entry = self._named(asked, mine)
        del self._entries[entry.protocol, entry.forward.local]
        self._state.delete_forward(entry.protocol, entry.forward.local)
        entry.close()
        if entry.ssh is not None:
            self._let_finish(entry.ssh)
        async with self._moving:
            await self._take_back(entry)

    async def settle(self) -> None:
        """See that every forward is with the worker of the VM that has its address."""
        async with self._moving:
            for entry in tuple(self._entries.values()):
                await self._settle(entry)

    async def call(
        self, network: str, host: str, port: int, fd: int, meant: str = "", first_bytes: bytes = b""
    ) -> bool:
        """Join a connected stream socket to a TCP port of a VM; False: no VM has that address."""
        vm, worker, guest_ip = self._server_of(network, host, meant)
        if vm is None or worker is None:
            return False
        return await self._vms.pass_descriptor(vm, worker, CallGuest(guest_ip, port, first_bytes), fd)

    async def close(self, patience: float) -> None:
        """Close every port; the state keeps them for the next run."""
        carried = [entry.ssh for entry in self._entries.values() if entry.ssh is not None]
        for entry in self._entries.values():
            entry.close()
        self._entries.clear()
        await asyncio.gather(*(forward.stop(patience) for forward in (*carried, *self._finishing)))

    def _named(self, asked: Unexpose, mine: Callable[[Forward], bool]) -> _Entry:
        meant = asked.protocol, asked.local
        listed = self._entries.get(meant)
        alike = [entry for entry in self._entries.values() if (entry.protocol, entry.asked) == meant]
        found = [entry for entry in ([listed] if listed is not None else alike) if mine(entry.forward)]
        if not found:
            raise RequestFailed.because("not-found", "proxy not found")
        if len(found) > 1:
            which = ", ".join(sorted(entry.forward.local for entry in found))
            raise RequestFailed.because("conflict", f"{asked.local} is any of {which}; say which")
        return found[0]

    # --- opening

    async def _open(self, asked: Expose, check_name: bool = False) -> _Entry:
        protocol = _protocol(asked.protocol)
        self._refuse_second(protocol, asked.local)
        remote = parse_remote(protocol, asked.remote)
        if check_name and not self._find_address(asked.network, remote.host, asked.vm):
            detail = f"no VM of network {asked.network} has this host name, and no zone a record of it"
            raise RequestFailed.because("not-found", f"lookup {remote.host}: no such host", detail)
        sock = await self._bind(protocol, asked.local)
        bound = os.path.abspath(bound_name(sock)) if protocol == "unix" else bound_name(sock)
        local = asked.local
        if protocol != "unix" and parse_local(protocol, local)[1] == 0:
            local = f"{local.rpartition(':')[0]}:{sock.getsockname()[1]}"
        try:
            self._refuse_second(protocol, local)  # looking up a host name gave others time
        except RequestFailed:
            sock.close()
            raise
        source = asked.source or self._source
        forward = Forward(local, asked.remote, protocol, asked.network, asked.vm, source, bound)
        guest = remote if isinstance(remote, GuestAddress) else None
        entry = _Entry(next(self._ids), asked.local, forward, sock, guest)
        if isinstance(remote, CarrySsh):
            entry.ssh = self._carry(entry, remote)
        self._entries[protocol, local] = entry
        return entry

    async def _bind(self, protocol: ForwardProtocol, local: str) -> socket.socket:
        if protocol == "unix":
            return bind_unix(local)
        host, port = parse_local(protocol, local)
        try:
            return await bind(protocol, host, port, self._dual_stack)
        except RequestFailed as error:
            if error.failure.code != "in-use":
                raise
            detail = f"held by {self._own_holder(protocol, host, port) or await holder(protocol, host, port)}"
            raise RequestFailed(dataclasses.replace(error.failure, detail=detail)) from error

    def _own_holder(self, protocol: ForwardProtocol, host: str, port: int) -> str:
        for entry in self._entries.values():
            if entry.protocol != protocol:
                continue
            bound_host, bound_port = parse_local(protocol, entry.forward.bound)
            if bound_port == port and overlap(bound_host, host):
                forward = entry.forward
                vm = f" ({entry.vm_id})" if entry.vm_id else ""
                remote = redacted(forward.remote)
                return f"the forward {protocol} {forward.local} to {remote}{vm}; DELETE that forward first"
        return ""

    def _refuse_second(self, protocol: str, local: str) -> None:
        entry = self._entries.get((protocol, local))
        if entry is not None:
            remote, network = redacted(entry.forward.remote), entry.forward.network
            detail = f"it leads to {remote} on network {network}; DELETE that forward first"
            raise RequestFailed.because("conflict", f"proxy already running for {protocol} on {local}", detail)

    # --- serving

    def _server_of(self, network: str, host: str, meant: str) -> tuple[Vm | None, Worker | None, str]:
        """The VM and worker that can serve a host now, and its address."""
        guest_ip = self._find_address(network, host, meant)
        vm = self._find_vm(network, guest_ip, meant) if guest_ip else None
        worker = vm.worker if vm is not None and vm.worker is not None and vm.worker.is_ready else None
        return vm, worker, guest_ip

    async def _settle(self, entry: _Entry) -> None:
        if entry.guest is None:
            return
        vm, worker, guest_ip = self._server_of(entry.forward.network, entry.guest.host, entry.forward.vm)
        if worker is not entry.worker or (worker is not None and guest_ip != entry.guest_ip):
            await self._take_back(entry)
            if vm is not None and worker is not None:
                await self._hand_over(entry, entry.guest.port, vm, worker, guest_ip)
        if entry.worker is None and entry.sock.fileno() >= 0:
            entry.unserved.start()

    async def _take_back(self, entry: _Entry) -> None:
        worker, vm_id = entry.worker, entry.vm_id
        entry.worker, entry.vm_id = None, ""
        if worker is None or not worker.is_ready:
            return
        try:
            await self._vms.ask(vm_id, worker, RemoveForward(entry.id), REMOVE_TIMEOUT)
        except ChannelError as error:
            log.error("%s keeps forward %s: %s", vm_id, entry.forward.local, error)

    async def _hand_over(self, entry: _Entry, port: int, vm: Vm, worker: Worker, guest_ip: str) -> None:
        if entry.sock.fileno() < 0:
            return  # closed while it waited for its turn
        entry.unserved.stop()
        spoken: Literal["tcp", "udp"] = "udp" if entry.protocol == "udp" else "tcp"
        message = AddForward(entry.id, spoken, guest_ip, port, entry.forward.source)
        if await self._vms.pass_descriptor(vm, worker, message, entry.sock.fileno()):
            entry.worker, entry.vm_id, entry.guest_ip = worker, vm.id, guest_ip

    def _carry(self, entry: _Entry, destination: CarrySsh) -> SshForward:
        async def call(fd: int) -> bool:
            forward = entry.forward
            return await self.call(forward.network, destination.host, destination.port, fd, forward.vm)

        return SshForward(entry.sock, destination, self._carrier_env, call)

    def _let_finish(self, forward: SshForward) -> None:
        task = asyncio.get_running_loop().create_task(forward.finished())
        self._finishing[forward] = task
        task.add_done_callback(lambda _: self._finishing.pop(forward, None))


def _described(entry: _Entry) -> Forward:
    """For others' eyes."""
    return dataclasses.replace(entry.forward, remote=redacted(entry.forward.remote), vm_id=entry.vm_id)


def _protocol(name: str) -> ForwardProtocol:
    if name == "npipe":
        raise RequestFailed.because("bad-request", "named pipes are not supported by this platform")
    if name == "unix":
        return "unix"
    if name in KINDS:
        return "udp" if name == "udp" else "tcp"
    raise RequestFailed.because("bad-request", f"unknown protocol {name}")
