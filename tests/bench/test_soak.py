"""The long runs, short: the bars of idle VMs, idle flows and a mixed run that leaves nothing behind."""

from __future__ import annotations

import pytest

from bench import idle_flows, idle_vms
from bench.soak import FATES, soak

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


def test_a_mixed_run_leaves_nothing_behind() -> None:
    found = soak(10, udp=False)
    assert all(found.ended[fate] > 10 for fate in FATES), found.ended


@pytest.mark.alone
def test_idle_vms_are_cheap_and_answered_fast() -> None:
    found = idle_vms.measure(50)
    assert found.pss_mean < idle_vms.MAX_PSS
    assert found.latency_median < idle_vms.MAX_LATENCY


def test_idle_flows_are_cheap() -> None:
    found = idle_flows.measure(2000)
    assert (found.after - found.before) / 2000 <= idle_flows.MAX_GROWTH / 10_000
