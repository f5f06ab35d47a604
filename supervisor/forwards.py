"""Forwarded ports: bound here, served by the worker of the VM that has the address.

The socket of a forward is the supervisor's for as long as the forward exists; a worker gets a duplicate. So a bind
error is the caller's error, and the port stays open while a worker is replaced or a VM reboots: connections wait in
the backlog. The error texts are gvproxy's, which its users match.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import socket
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address

from proto.errors import ChannelError, RequestFailed
from proto.messages import AddForward, Expose, Forward, ForwardProtocol, RemoveForward, Unexpose
from supervisor.endpoints import BACKLOG, join_host_port
from supervisor.leases import MAC
from supervisor.state import State
from supervisor.vms import Vm, Vms, Worker

PASS_TIMEOUT = 2.0
"""s for a worker to take a descriptor."""
RESOLVE_TIMEOUT = 2.0
"""s for a host name in a local address."""
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}

log = logging.getLogger(__name__)


class _Entry:
    def __init__(self, forward_id: int, forward: Forward, sock: socket.socket, guest: tuple[str, int]) -> None:
        self.id = forward_id
        self.forward = forward
        self.sock = sock
        self.guest_ip, self.guest_port = guest
        self.vm_id = ""
        self.worker: Worker | None = None
        """Who serves it."""


class Forwards:
    """All forwarded ports. `find_vm` says which VM has an address of a network; it may be told which VM is meant."""

    def __init__(self, state: State, vms: Vms, find_vm: Callable[[str, str, str], Vm | None]) -> None:
        self._state = state
        self._vms = vms
        self._find_vm = find_vm
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._ids = itertools.count(1)
        self._moving = asyncio.Lock()

    def list(self) -> tuple[Forward, ...]:
        """All forwards, sorted by local address, then protocol."""
        entries = sorted(self._entries.values(), key=lambda entry: (entry.forward.local, entry.forward.protocol))
        return tuple(dataclasses.replace(entry.forward, vm_id=entry.vm_id) for entry in entries)

    async def restore(self) -> None:
        """Open the forwards of an earlier run; one that cannot be opened is logged, and tried again at the next."""
        for forward in self._state.forwards():
            try:
                await self._open(Expose(forward.local, forward.remote, forward.protocol, forward.network, forward.vm))
            except RequestFailed as error:
                log.error("forward %s/%s is not restored: %s", forward.local, forward.protocol, error)

    async def expose(self, asked: Expose) -> Forward:
        """Forward a port. Raises RequestFailed: ``bad-request``, ``conflict`` (already forwarded), ``in-use``."""
        entry = await self._open(asked)
        if not asked.vm or MAC.fullmatch(asked.vm):  # an id means something only while this process lives
            self._state.save_forward(entry.forward)
        await self.settle()
        return dataclasses.replace(entry.forward, vm_id=entry.vm_id)

    async def unexpose(self, asked: Unexpose) -> None:
        """Stop a forward. Raises RequestFailed ``not-found``."""
        entry = self._entries.pop((asked.protocol, asked.local), None)
        if entry is None:
            raise RequestFailed.because("not-found", "proxy not found")
        self._state.delete_forward(asked.protocol, asked.local)
        entry.sock.close()
        async with self._moving:
            await self._take_back(entry)

    async def settle(self) -> None:
        """See that every forward is with the worker of the VM that has its address."""
        async with self._moving:
            for entry in tuple(self._entries.values()):
                vm = self._find_vm(entry.forward.network, entry.guest_ip, entry.forward.vm)
                worker = vm.worker if vm is not None and vm.worker is not None and vm.worker.is_ready else None
                if worker is entry.worker:
                    continue
                await self._take_back(entry)
                if vm is not None and worker is not None:
                    await self._hand_over(entry, vm, worker)

    def close(self) -> None:
        """Close every port; the state keeps them for the next run."""
        for entry in self._entries.values():
            entry.sock.close()
        self._entries.clear()

    async def _open(self, asked: Expose) -> _Entry:
        key = (asked.protocol, asked.local)
        if asked.protocol not in KINDS:
            raise RequestFailed.because("bad-request", f"unknown protocol {asked.protocol}")
        self._refuse_second(key)
        host, port = _split(asked.local)
        guest = _guest_address(asked.remote)
        sock = await _bind(asked, host, port)
        try:
            self._refuse_second(key)  # looking up a host name gave others time
        except RequestFailed:
            sock.close()
            raise
        bound_host, bound_port = sock.getsockname()[:2]
        protocol: ForwardProtocol = "udp" if asked.protocol == "udp" else "tcp"
        bound = join_host_port(bound_host, bound_port)
        forward = Forward(asked.local, asked.remote, protocol, asked.network, asked.vm, bound)
        entry = _Entry(next(self._ids), forward, sock, guest)
        self._entries[key] = entry
        return entry

    def _refuse_second(self, key: tuple[str, str]) -> None:
        if key in self._entries:
            raise RequestFailed.because("conflict", f"proxy already running for {key[0]} on {key[1]}")

    async def _take_back(self, entry: _Entry) -> None:
        worker, vm_id = entry.worker, entry.vm_id
        entry.worker, entry.vm_id = None, ""
        if worker is None or not worker.is_ready:
            return
        try:
            await self._vms.ask(vm_id, worker, RemoveForward(entry.id), PASS_TIMEOUT)
        except ChannelError as error:
            log.error("%s keeps forward %s: %s", vm_id, entry.forward.local, error)

    async def _hand_over(self, entry: _Entry, vm: Vm, worker: Worker) -> None:
        message = AddForward(entry.id, entry.forward.protocol, entry.guest_ip, entry.guest_port)
        if entry.sock.fileno() < 0:
            return  # closed while it waited for its turn
        try:
            async with asyncio.timeout(PASS_TIMEOUT):
                await worker.channel.asend(message, [entry.sock.fileno()])
        except TimeoutError:
            log.error("the worker of %s takes no descriptors; killed", vm.id)
            self._vms.kill(worker)
        except (OSError, EOFError) as error:
            log.info("the worker of %s cannot take forward %s: %s", vm.id, entry.forward.local, error)
        else:
            entry.worker, entry.vm_id = worker, vm.id


async def _bind(asked: Expose, host: str, port: int) -> socket.socket:
    """A bound socket, for TCP a listening one; without a host on every address. IPv4, as the engine's forwards are."""
    kind = KINDS[asked.protocol]
    refusal = f"listen {asked.protocol} {asked.local}"
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(
                host or "0.0.0.0", port, family=socket.AF_INET, type=kind
            )
    except (OSError, TimeoutError, UnicodeError) as error:
        raise RequestFailed.because("bad-request", f"{refusal}: lookup {host}: no such IPv4 host") from error
    sock = socket.socket(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(found[0][4])
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise RequestFailed.because("in-use", f"{refusal}: bind: {(error.strerror or str(error)).lower()}") from error
    sock.setblocking(False)
    return sock


def _split(local: str) -> tuple[str, int]:
    """Host (may be empty) and port of a local address."""
    host, colon, port = local.rpartition(":")
    if not colon or host.endswith(":"):
        raise RequestFailed.because("bad-request", f"address {local}: missing port in address")
    return host.removeprefix("[").removesuffix("]"), _port(port)


def _guest_address(remote: str) -> tuple[str, int]:
    """Address and port in the guest."""
    host, colon, port = remote.rpartition(":")
    if not colon:
        raise RequestFailed.because("bad-request", f"address {remote}: missing port in address")
    try:
        return str(IPv4Address(host)), _port(port)
    except AddressValueError as error:
        raise RequestFailed.because("bad-request", "invalid remote addr") from error


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise RequestFailed.because("bad-request", f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if len(text) > 9 or int(text) > 65535:
        raise RequestFailed.because("bad-request", f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)
