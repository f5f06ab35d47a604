"""``/metrics`` is what Prometheus can scrape."""

from __future__ import annotations

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import CannedSupervisor


def test_counters_and_gauges_carry_vm_and_network(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.get_data(as_text=True))}
    retransmits, flows = families["moorage_tcp_retransmits"], families["moorage_tcp_flows"]
    assert (retransmits.type, flows.type) == ("counter", "gauge")
    (sample,) = retransmits.samples
    assert (sample.name, sample.labels, sample.value) == (
        "moorage_tcp_retransmits_total",
        {"vm": "vm-1", "network": "default"},
        5,
    )
    assert families["moorage_vms"].samples[0].value == 1
    assert families["moorage_worker_memory_bytes"].samples[0].value == 7_000_000
