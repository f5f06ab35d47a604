"""``/metrics`` in Prometheus' text format: every counter of every VM, labelled with the VM and its network only."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.supervisor_client import ask
from proto.counters import GAUGES
from proto.messages import ListVms, Vm, Vms

blueprint = Blueprint("metrics", __name__)

LABELS = ("vm", "network")


class VmCollector(Collector):
    """Metrics of one moment."""

    def __init__(self, vms: tuple[Vm, ...]) -> None:
        self._vms = vms

    def collect(self) -> Iterator[Metric]:
        """One family for each counter that any VM has, then what its worker costs."""
        yield GaugeMetricFamily("moorage_vms", "Attached VMs", value=len(self._vms))
        for name in sorted({name for vm in self._vms for name in vm.counters}):
            family = _family(name)
            for vm in self._vms:
                if name in vm.counters:
                    family.add_metric((vm.id, vm.network), vm.counters[name])
            yield family
        memory = GaugeMetricFamily("moorage_worker_memory_bytes", "Resident memory of the worker", labels=LABELS)
        files = GaugeMetricFamily("moorage_worker_open_files", "Open descriptors of the worker", labels=LABELS)
        cpu = CounterMetricFamily("moorage_worker_cpu_seconds", "CPU time of the worker", labels=LABELS)
        restarts = CounterMetricFamily("moorage_worker_restarts", "Times the worker was replaced", labels=LABELS)
        for vm in self._vms:
            labels = (vm.id, vm.network)
            memory.add_metric(labels, vm.memory)
            files.add_metric(labels, vm.open_files)
            cpu.add_metric(labels, vm.cpu_seconds)
            restarts.add_metric(labels, vm.restarts)
        yield from (memory, files, cpu, restarts)


@blueprint.get("/metrics")
def metrics() -> Response:
    """What Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(VmCollector(ask(ListVms(), Vms).vms))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _family(name: str) -> GaugeMetricFamily | CounterMetricFamily:
    metric = "moorage_" + re.sub(r"\W", "_", name, flags=re.ASCII)
    kind = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
    return kind(metric, f"Worker counter {name}", labels=LABELS)
