"""The API's questions, answered."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import psutil

from proto import messages
from proto.codec import Message
from proto.errors import RequestFailed
from supervisor.forwards.table import Forwards
from supervisor.networks import Network
from supervisor.vms import Vm, Vms

STATS_PATIENCE = 1.0
"""s for the workers to tell their counters."""


class Control:
    """Dispatches by message type; `handle` is the responder's handler."""

    def __init__(self, networks: Mapping[str, Network], vms: Vms, forwards: Forwards) -> None:
        self._networks = networks
        self._vms = vms
        self._forwards = forwards
        self._handlers: dict[type, Callable[[Any], Awaitable[Message | None]]] = {
            messages.ListVms: self._list_vms,
            messages.ListNetworks: self._list_networks,
            messages.ListLeases: self._list_leases,
            messages.ListForwards: self._list_forwards,
            messages.Expose: self._expose,
            messages.Unexpose: self._unexpose,
            messages.ListZones: self._list_zones,
            messages.AddZone: self._add_zone,
            messages.RemoveZone: self._remove_zone,
            messages.SumStats: self._sum_stats,
        }

    async def handle(self, _peer: bytes, message: Message) -> Message | None:
        """Answer the API. Raises RequestFailed."""
        handler = self._handlers.get(type(message))
        if handler is None:
            raise RequestFailed.because("bad-request", f"{type(message).__name__} is no question")
        return await handler(message)

    async def _list_vms(self, _: messages.ListVms) -> messages.Vms:
        await self._vms.refresh_counters(STATS_PATIENCE)
        return messages.Vms(tuple(_describe(vm) for vm in self._vms))

    async def _list_networks(self, _: messages.ListNetworks) -> messages.Networks:
        return messages.Networks(tuple(network.info(time.time()) for network in self._networks.values()))

    async def _list_leases(self, asked: messages.ListLeases) -> messages.Leases:
        network = self._network(asked.network)
        return messages.Leases(network.leases(time.time()), network.gateway_ip, network.spec.gateway_mac)

    async def _list_forwards(self, _: messages.ListForwards) -> messages.Forwards:
        return messages.Forwards(self._forwards.list())

    async def _expose(self, asked: messages.Expose) -> messages.Forward:
        if not self._network(asked.network).is_shared and not asked.vm:
            raise RequestFailed.because(
                "bad-request", f"network {asked.network} is isolated, its VMs may have the same address: name the VM"
            )
        return await self._forwards.expose(asked)

    async def _unexpose(self, asked: messages.Unexpose) -> None:
        await self._forwards.unexpose(asked)

    async def _list_zones(self, asked: messages.ListZones) -> messages.Zones:
        return messages.Zones(self._network(asked.network).zones)

    async def _add_zone(self, asked: messages.AddZone) -> None:
        self._network(asked.network).add_zone(asked.zone)
        await self._vms.tell_networks()
        await self._forwards.settle()  # to names

    async def _remove_zone(self, asked: messages.RemoveZone) -> None:
        self._network(asked.network).remove_zone(asked.name)
        await self._vms.tell_networks()
        await self._forwards.settle()

    async def _sum_stats(self, _: messages.SumStats) -> messages.Stats:
        await self._vms.refresh_counters(STATS_PATIENCE)
        total = self._vms.counters_ended.copy()
        for vm in self._vms:
            total.update(vm.counters())
        return messages.Stats(dict(total), sum(vm.worker is not None for vm in self._vms))

    def _network(self, name: str) -> Network:
        network = self._networks.get(name)
        if network is None:
            known = ", ".join(self._networks)
            raise RequestFailed.because("not-found", f"no network {name!r}; there is {known}")
        return network


def _describe(vm: Vm) -> messages.Vm:
    memory, cpu_seconds, open_files = _cost(vm.worker.pid) if vm.worker is not None else (0, 0.0, 0)
    return messages.Vm(
        id=vm.id,
        network=vm.network.name,
        link=vm.attachment.kind,
        listener=vm.attachment.listener,
        peer=vm.attachment.peer,
        worker_pid=vm.worker.pid if vm.worker is not None else 0,
        attached_at=vm.attached_at,
        restarts=vm.restarts,
        mac=vm.mac,
        ip=vm.ip,
        counters={name: value for name, value in vm.counters().items() if value},
        memory=memory,
        cpu_seconds=cpu_seconds,
        open_files=open_files,
    )


def _cost(pid: int) -> tuple[int, float, int]:
    """Resident bytes, CPU seconds and open descriptors of a process; zeros where it is gone."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return process.memory_info().rss, times.user + times.system, process.num_fds()
    except psutil.Error:
        return 0, 0.0, 0
