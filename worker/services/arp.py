"""ARP (RFC 826, probes: RFC 5227): says where the gateway and the addresses it stands in for are.

Only those are answered. A guest that asks for its own address (a probe, or an announcement) must hear nothing, or it
would think the address taken; another VM's address is answered by that VM. Nothing is learned: the engine knows the
guest's MAC from its frames.
"""

from __future__ import annotations

import dpkt

from worker.services.frames import ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ethertype, push_ethernet

_PROTOCOL = (dpkt.arp.ARP_HRD_ETH, dpkt.arp.ARP_PRO_IP, 6, 4)
_OPERATIONS = (dpkt.arp.ARP_OP_REQUEST, dpkt.arp.ARP_OP_REPLY)


class ArpResponder:
    """Answers for `addresses` (4 bytes each) with `mac`."""

    def __init__(self, mac: bytes, addresses: frozenset[bytes]) -> None:
        self._mac = mac
        self._addresses = addresses
        self.counters = dict.fromkeys(
            ("arp.requests", "arp.requests_for_others", "arp.replies", "arp.replies_received", "arp.malformed"), 0
        )

    def receive(self, frame: bytes) -> bytes | None:
        """The reply frame, where there is one to give."""
        arp = _pull_arp(frame)
        if arp is None:
            self.counters["arp.malformed"] += 1
            return None
        if arp.op == dpkt.arp.ARP_OP_REPLY:
            self.counters["arp.replies_received"] += 1
            return None
        self.counters["arp.requests"] += 1
        if arp.tpa not in self._addresses:
            self.counters["arp.requests_for_others"] += 1
            return None
        self.counters["arp.replies"] += 1
        reply = dpkt.arp.ARP(op=dpkt.arp.ARP_OP_REPLY, sha=self._mac, spa=arp.tpa, tha=arp.sha, tpa=arp.spa)
        return push_ethernet(arp.sha, self._mac, ETHERTYPE_ARP, bytes(reply))


def _pull_arp(frame: bytes) -> dpkt.arp.ARP | None:
    if ethertype(frame) != ETHERTYPE_ARP:
        return None
    try:
        arp = dpkt.arp.ARP(frame[ETHERNET_HEADER_LEN:])
    except dpkt.UnpackError:
        return None
    is_known = (arp.hrd, arp.pro, arp.hln, arp.pln) == _PROTOCOL and arp.op in _OPERATIONS
    return arp if is_known else None
