"""What a guest may ask of the forwards, by the API inside its network.

Its own TCP and UDP ports, on those ports of the host that the network lets guests have, and no more than `MAX_FORWARDS`
of them; never a unix socket, which would be a file of the host, nor SSH, which would read a key file there. It sees the
forwards that lead to it, and ends those that it made.
"""

from __future__ import annotations

from proto.errors import RequestFailed
from proto.guest_requests import GuestExpose, GuestUnexpose
from proto.messages import Expose, Forward, Forwards, Unexpose
from supervisor.forwards.addresses import parse_local
from supervisor.forwards.table import Forwards as Table
from supervisor.vms import Vm

MAX_FORWARDS = 1000
"""Of one VM's own making."""


class GuestForwards:
    """The table as a guest sees it."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def list(self, vm: Vm) -> Forwards:
        """The ports that lead to the VM. Raises RequestFailed where guests may not ask."""
        _check_allowed(vm)
        return Forwards(
            tuple(
                forward
                for forward in self._table.list()
                if forward.protocol != "unix" and (forward.vm_id == vm.id or _is_by(forward, vm))
            )
        )

    async def expose(self, vm: Vm, asked: GuestExpose) -> None:
        """Forward a port. Raises RequestFailed."""
        _check_allowed(vm)
        if asked.protocol not in ("tcp", "udp"):
            raise RequestFailed.because("bad-request", f"a guest may forward tcp and udp, not {asked.protocol}")
        _, port = parse_local(asked.protocol, asked.local)
        if not any(port in allowed for allowed in vm.network.spec.guest_api):
            raise RequestFailed.because("bad-request", f"a guest may not listen on port {port} of this host")
        if sum(_is_by(forward, vm) for forward in self._table.list()) >= MAX_FORWARDS:
            raise RequestFailed.because("unavailable", f"a guest may have {MAX_FORWARDS} forwards")
        # It stays this VM's, whoever may have the address later.
        await self._table.expose(Expose(asked.local, asked.remote, asked.protocol, vm.network.name, vm.mac))

    async def unexpose(self, vm: Vm, asked: GuestUnexpose) -> None:
        """Stop a forward that the VM made. Raises RequestFailed."""
        _check_allowed(vm)
        await self._table.unexpose(Unexpose(asked.local, asked.protocol), lambda forward: _is_by(forward, vm))


def _check_allowed(vm: Vm) -> None:
    if not vm.network.spec.guest_api or not vm.mac:
        raise RequestFailed.because("bad-request", f"guests of network {vm.network.name} may not forward ports")


def _is_by(forward: Forward, vm: Vm) -> bool:
    return forward.network == vm.network.name and forward.vm == vm.mac
