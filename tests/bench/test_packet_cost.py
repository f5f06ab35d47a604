"""How counters become costs."""

from __future__ import annotations

import pytest

from bench.packet_cost import MB, SHOWN, Case, cost

CASE = Case("bulk", ("stream", "1", "up"), "MB", "flow.bytes_from_guest", MB)


def test_cost_is_for_each_of_what_the_case_counts() -> None:
    before = {"flow.bytes_from_guest": MB, "tcp.rx_segments": 100}
    after = {"flow.bytes_from_guest": 5 * MB, "tcp.rx_segments": 2900, "syscalls.link_recv": 20}
    found = cost(CASE, before, after, user=0.002, system=0.004)
    counts = dict(zip(SHOWN, found.counts, strict=True))
    assert (found.user_us, found.system_us) == (500, 1000)
    assert (counts["segments in"], counts["link recv"], counts["upcalls"]) == (700, 5, 0)


def test_a_case_in_which_nothing_happened_has_no_cost() -> None:
    with pytest.raises(AssertionError, match="nothing counted"):
        cost(CASE, {}, {}, 1.0, 1.0)
