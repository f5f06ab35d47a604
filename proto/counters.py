"""Which of a worker's numbers say how much there is now. All others only grow, and outlive the worker in sums."""

from collections.abc import Mapping

GAUGES = frozenset(
    {
        "dns.cache_bytes",
        "dns.cache_entries",
        "dns.in_flight",
        "dns.waiting",
        "icmp.ping_sockets",
        "ipv4.reassembling",
        "memory.rings",
        "tcp.flows",
        "tcp.time_wait",
        "udp.flows",
        "verdicts.known",
    }
)


def lasting(counters: Mapping[str, int]) -> dict[str, int]:
    """The numbers that still count when their worker has ended."""
    return {name: value for name, value in counters.items() if name not in GAUGES}
