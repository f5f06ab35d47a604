"""Several VMs on one datagram socket: their frames are carried between it and a socket pair for each.

For VMs that were connected to the same socket before the first of them said a word (they stay connected to it, whatever
happens to the path), and for those that are not connected at all and send to the path each time. It costs the
supervisor two system calls a frame, so it is only for those.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from supervisor.attach.datagram import MAX_DATAGRAM, SEND_BUFFER, Datagram, receive
from supervisor.attach.unix_peers import Address, is_bound, shown

MAX_VMS = 256
BATCH = 64
"""Frames of one socket before the loop goes round."""
PATIENCE, LONGEST_PATIENCE = 0.002, 0.1
"""s until a frame is offered again to a VM whose queue was full: nothing tells when it no longer is. Each time in a row
twice as long as the one before."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class RelayedVm:
    """One of them: its address on the datagram socket, and our end of its pair."""

    address: Address
    end: socket.socket
    held: bytes = b""
    """A frame that its queue had no room for."""
    patience: float = PATIENCE


class Relay:
    """Owns `sock`. `attach` is given the far end of a new VM's pair; `on_idle` is called when the last VM has gone."""

    def __init__(
        self,
        sock: socket.socket,
        may_attach: Callable[[Datagram], bool],
        attach: Callable[[socket.socket, Datagram], None],
        on_idle: Callable[[Relay], None],
    ) -> None:
        self.sock = sock
        self._may_attach = may_attach
        self._attach = attach
        self._on_idle = on_idle
        self._vms: dict[Address, RelayedVm] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._on_readable)

    def __bool__(self) -> bool:
        """Whether any VM is there."""
        return bool(self._vms)

    def take(self, datagram: Datagram) -> None:
        """Carry a VM's frame to its worker; a full queue drops it, as a network would."""
        vm = self._vms.get(datagram.sender)
        if vm is None:
            if self._may_attach(datagram) and len(self._vms) < MAX_VMS:
                self._add(datagram)
            return
        try:
            vm.end.send(datagram.data)
        except BlockingIOError:
            pass
        except OSError:
            self._remove(vm)

    def forget(self, address: Address) -> None:
        """That address belongs to another VM now."""
        vm = self._vms.get(address)
        if vm is not None:
            self._remove(vm)

    def look_around(self) -> None:
        """Let the VMs go that are no longer there."""
        for vm in tuple(self._vms.values()):
            if not is_bound(vm.address):
                self._remove(vm)

    def release(self) -> socket.socket:
        """Carry no more; the socket is the caller's."""
        self._loop.remove_reader(self.sock)
        for vm in tuple(self._vms.values()):
            self._close(vm)
        return self.sock

    def _add(self, first: Datagram) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            log.error("cannot attach a VM at %s now: %s", shown(first.sender), error)
            return
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._attach(theirs, first)
        vm = self._vms[first.sender] = RelayedVm(first.sender, ours)
        self._loop.add_reader(ours, self._on_link, vm)

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            try:
                self.take(receive(self.sock))
            except (BlockingIOError, ConnectionError):
                return

    def _on_link(self, vm: RelayedVm) -> None:
        for _ in range(BATCH):
            try:
                frame = vm.end.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                frame = b""
            if not frame:
                return self._remove(vm)
            if not self._send(vm, frame):
                return

    def _send(self, vm: RelayedVm, frame: bytes) -> bool:
        """False: no more for now."""
        try:
            self.sock.sendto(frame, vm.address)
        except BlockingIOError:
            vm.held = frame
            self._loop.remove_reader(vm.end)
            self._loop.call_later(vm.patience, self._resume, vm)
            vm.patience = min(2 * vm.patience, LONGEST_PATIENCE)
            return False
        except OSError as error:
            log.info("a VM at %s cannot be reached any more: %s", shown(vm.address), error)
            self._remove(vm)
            return False
        vm.patience = PATIENCE
        return True

    def _resume(self, vm: RelayedVm) -> None:
        if vm.end.fileno() >= 0 and self._send(vm, vm.held):
            self._loop.add_reader(vm.end, self._on_link, vm)

    def _remove(self, vm: RelayedVm) -> None:
        self._close(vm)
        if not self._vms:
            self._on_idle(self)

    def _close(self, vm: RelayedVm) -> None:
        """Its worker sees the end of the link."""
        self._vms.pop(vm.address, None)
        if vm.end.fileno() >= 0:
            self._loop.remove_reader(vm.end)
            vm.end.close()
