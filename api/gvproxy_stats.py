"""gvproxy's tree of counters (``/stats``), by what Moorage's workers count.

gvproxy shows the counters of gVisor's network stack under gVisor's names. `SOURCES` says of each what it is here: a sum
of ours, or nothing, for one that has no meaning here and stays 0. The tables of ``docs/stats.md`` are made of it, by
`table`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SOURCES = {
    "ARP.DisabledPacketsReceived": "",
    "ARP.MalformedPacketsReceived": "arp.malformed",
    "ARP.OutgoingRepliesDropped": "",
    "ARP.OutgoingRepliesSent": "arp.replies",
    "ARP.OutgoingRequestBadLocalAddressErrors": "",
    "ARP.OutgoingRequestInterfaceHasNoLocalAddressErrors": "",
    "ARP.OutgoingRequestsDropped": "",
    "ARP.OutgoingRequestsSent": "",
    "ARP.PacketsReceived": "arp.requests + arp.replies_received + arp.malformed",
    "ARP.RepliesReceived": "arp.replies_received",
    "ARP.RequestsReceived": "arp.requests",
    "ARP.RequestsReceivedUnknownTargetAddress": "arp.requests_for_others",
    "BytesReceived": "link.rx_bytes",
    "BytesSent": "link.tx_bytes",
    "DroppedPackets": "upcalls.dropped",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.DstUnreachable": "icmp.rx_unreachable",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.EchoReply": "icmp.rx_echo_reply",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.EchoRequest": "icmp.rx_echo",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.InfoReply": "icmp.rx_information_reply",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.InfoRequest": "icmp.rx_information",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.ParamProblem": "icmp.rx_parameter_problem",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.Redirect": "icmp.rx_redirect",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.SrcQuench": "icmp.rx_source_quench",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.TimeExceeded": "icmp.rx_time_exceeded",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.Timestamp": "icmp.rx_timestamp",
    "ICMP.V4.PacketsReceived.ICMPv4PacketStats.TimestampReply": "icmp.rx_timestamp_reply",
    "ICMP.V4.PacketsReceived.Invalid": "icmp.rx_other + icmp.malformed",
    "ICMP.V4.PacketsSent.Dropped": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.DstUnreachable": "icmp.tx_errors + icmp.unreachable",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.EchoReply": "icmp.echo_reply",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.EchoRequest": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.InfoReply": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.InfoRequest": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.ParamProblem": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.Redirect": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.SrcQuench": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.TimeExceeded": "icmp.time_exceeded",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.Timestamp": "",
    "ICMP.V4.PacketsSent.ICMPv4PacketStats.TimestampReply": "",
    "ICMP.V4.PacketsSent.RateLimited": "icmp.rate_limited",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.DstUnreachable": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.EchoReply": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.EchoRequest": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.MulticastListenerDone": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.MulticastListenerQuery": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.MulticastListenerReport": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.MulticastListenerReportV2": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.NeighborAdvert": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.NeighborSolicit": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.PacketTooBig": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.ParamProblem": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.RedirectMsg": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.RouterAdvert": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.RouterSolicit": "",
    "ICMP.V6.PacketsReceived.ICMPv6PacketStats.TimeExceeded": "",
    "ICMP.V6.PacketsReceived.Invalid": "",
    "ICMP.V6.PacketsReceived.RouterOnlyPacketsDroppedByHost": "",
    "ICMP.V6.PacketsReceived.Unrecognized": "",
    "ICMP.V6.PacketsSent.Dropped": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.DstUnreachable": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.EchoReply": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.EchoRequest": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.MulticastListenerDone": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.MulticastListenerQuery": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.MulticastListenerReport": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.MulticastListenerReportV2": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.NeighborAdvert": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.NeighborSolicit": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.PacketTooBig": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.ParamProblem": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.RedirectMsg": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.RouterAdvert": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.RouterSolicit": "",
    "ICMP.V6.PacketsSent.ICMPv6PacketStats.TimeExceeded": "",
    "ICMP.V6.PacketsSent.RateLimited": "",
    "IGMP.PacketsReceived.ChecksumErrors": "igmp.bad_checksum",
    "IGMP.PacketsReceived.IGMPPacketStats.LeaveGroup": "igmp.rx_leave",
    "IGMP.PacketsReceived.IGMPPacketStats.MembershipQuery": "igmp.rx_query",
    "IGMP.PacketsReceived.IGMPPacketStats.V1MembershipReport": "igmp.rx_v1_report",
    "IGMP.PacketsReceived.IGMPPacketStats.V2MembershipReport": "igmp.rx_v2_report",
    "IGMP.PacketsReceived.IGMPPacketStats.V3MembershipReport": "igmp.rx_v3_report",
    "IGMP.PacketsReceived.Invalid": "igmp.malformed",
    "IGMP.PacketsReceived.Unrecognized": "igmp.rx_other",
    "IGMP.PacketsSent.Dropped": "",
    "IGMP.PacketsSent.IGMPPacketStats.LeaveGroup": "",
    "IGMP.PacketsSent.IGMPPacketStats.MembershipQuery": "",
    "IGMP.PacketsSent.IGMPPacketStats.V1MembershipReport": "",
    "IGMP.PacketsSent.IGMPPacketStats.V2MembershipReport": "",
    "IGMP.PacketsSent.IGMPPacketStats.V3MembershipReport": "",
    "IP.DisabledPacketsReceived": "",
    "IP.Forwarding.Errors": "",
    "IP.Forwarding.ExhaustedTTL": "",
    "IP.Forwarding.ExtensionHeaderProblem": "",
    "IP.Forwarding.HostUnreachable": "",
    "IP.Forwarding.InitializingSource": "",
    "IP.Forwarding.LinkLocalDestination": "",
    "IP.Forwarding.LinkLocalSource": "",
    "IP.Forwarding.NoMulticastPendingQueueBufferSpace": "",
    "IP.Forwarding.OutgoingDeviceClosedForSend": "",
    "IP.Forwarding.OutgoingDeviceNoBufferSpace": "",
    "IP.Forwarding.PacketTooBig": "",
    "IP.Forwarding.UnexpectedMulticastInputInterface": "",
    "IP.Forwarding.UnknownOutputEndpoint": "",
    "IP.Forwarding.Unrouteable": "",
    "IP.IPTablesForwardDropped": "",
    "IP.IPTablesInputDropped": "",
    "IP.IPTablesOutputDropped": "",
    "IP.IPTablesPostroutingDropped": "",
    "IP.IPTablesPreroutingDropped": "",
    "IP.InvalidDestinationAddressesReceived": "ipv4.bad_destination",
    "IP.InvalidSourceAddressesReceived": "ipv4.bad_source",
    "IP.MalformedFragmentsReceived": "ipv4.reassembly_dropped",
    "IP.MalformedPacketsReceived": "ipv4.malformed + ipv4.bad_checksum",
    "IP.OptionRecordRouteReceived": "ipv4.option_record_route",
    "IP.OptionRouterAlertReceived": "ipv4.option_router_alert",
    "IP.OptionTimestampReceived": "ipv4.option_timestamp",
    "IP.OptionUnknownReceived": "ipv4.option_other",
    "IP.OutgoingPacketErrors": "link.tx_dropped",
    "IP.PacketsDelivered": "ipv4.rx_packets - ipv4.malformed - ipv4.bad_checksum - ipv4.bad_source"
    " - ipv4.fragments + ipv4.reassembled",
    "IP.PacketsReceived": "ipv4.rx_packets",
    "IP.PacketsSent": "link.tx_frames - arp.replies",
    "IP.ValidPacketsReceived": "ipv4.rx_packets - ipv4.malformed - ipv4.bad_checksum",
    "NICs.DisabledRx.Bytes": "",
    "NICs.DisabledRx.Packets": "",
    "NICs.MalformedL4RcvdPackets": "tcp.malformed + udp.malformed + icmp.malformed",
    "NICs.Neighbor.DroppedConfirmationForNoninitiatedNeighbor": "",
    "NICs.Neighbor.DroppedInvalidLinkAddressConfirmations": "",
    "NICs.Neighbor.UnreachableEntryLookups": "",
    "NICs.Rx.Bytes": "link.rx_bytes",
    "NICs.Rx.Packets": "link.rx_frames",
    "NICs.Tx.Bytes": "link.tx_bytes",
    "NICs.Tx.Packets": "link.tx_frames",
    "NICs.TxPacketsDroppedNoBufferSpace": "link.tx_dropped",
    "TCP.ActiveConnectionOpenings": "tcp.opened_by_host",
    "TCP.ChecksumErrors": "tcp.bad_checksum",
    "TCP.CurrentConnected": "tcp.flows - tcp.time_wait",
    "TCP.CurrentEstablished": "tcp.flows - tcp.time_wait",
    "TCP.EstablishedClosed": "tcp.closed - tcp.attempt_fails",
    "TCP.EstablishedResets": "tcp.estab_resets",
    "TCP.EstablishedTimedout": "tcp.timeouts",
    "TCP.FailedConnectionAttempts": "tcp.attempt_fails + tcp.refused",
    "TCP.FailedPortReservations": "tcp.no_port",
    "TCP.FastRecovery": "tcp.fast_recoveries",
    "TCP.FastRetransmit": "tcp.fast_retransmits",
    "TCP.ForwardMaxInFlightDrop": "tcp.over_limit",
    "TCP.InvalidSegmentsReceived": "tcp.malformed",
    "TCP.ListenOverflowAckDrop": "",
    "TCP.ListenOverflowInvalidSynCookieRcvd": "",
    "TCP.ListenOverflowSynCookieRcvd": "",
    "TCP.ListenOverflowSynCookieSent": "",
    "TCP.ListenOverflowSynDrop": "",
    "TCP.PassiveConnectionOpenings": "tcp.opened_by_guest",
    "TCP.ResetsReceived": "tcp.resets_received",
    "TCP.ResetsSent": "tcp.resets_sent",
    "TCP.Retransmits": "tcp.retransmits",
    "TCP.SACKRecovery": "tcp.sack_recoveries",
    "TCP.SegmentSendErrors": "",
    "TCP.SegmentsAckedWithDSACK": "tcp.dsacks",
    "TCP.SegmentsSent": "tcp.tx_segments",
    "TCP.SlowStartRetransmits": "tcp.retransmits - tcp.fast_retransmits",
    "TCP.SpuriousRTORecovery": "",
    "TCP.SpuriousRecovery": "",
    "TCP.TLPRecovery": "",
    "TCP.Timeouts": "tcp.rto_expired",
    "TCP.ValidSegmentsReceived": "tcp.rx_segments - tcp.malformed - tcp.bad_checksum",
    "UDP.ChecksumErrors": "udp.bad_checksum",
    "UDP.MalformedPacketsReceived": "udp.malformed",
    "UDP.PacketSendErrors": "udp.send_errors",
    "UDP.PacketsReceived": "udp.rx_datagrams - udp.malformed - udp.bad_checksum",
    "UDP.PacketsSent": "udp.tx_datagrams",
    "UDP.ReceiveBufferErrors": "",
    "UDP.UnknownPortErrors": "udp.refused",
}

WHY_ZERO = {
    "ARP.Disabled": "a link is never switched off",
    "ARP.OutgoingReplies": "a frame that does not fit is in IP.OutgoingPacketErrors, whatever is in it",
    "ARP.": "the gateway asks for no address: it knows its VM's from the frames",
    "ICMP.V4.PacketsSent.Dropped": "a frame that does not fit is in IP.OutgoingPacketErrors, whatever is in it",
    "ICMP.V4.": "such messages are not sent",
    "ICMP.V6.": "there is no IPv6 yet",
    "IGMP.": "multicast is not routed, so no group is asked about or joined",
    "IP.Forwarding.": "packets are not forwarded: they end here, and sockets of the host carry on what was in them",
    "IP.IPTables": "there is no packet filter of this kind",
    "NICs.Neighbor.": "there is no neighbour cache",
    "TCP.ListenOverflow": "there is no backlog and no SYN cookie: a connection is answered once the host's is up",
    "TCP.SegmentSendErrors": "a segment waits for the link",
    "TCP.": "spurious recoveries are not detected, and there is no tail loss probe",
    "UDP.": "a datagram goes to its host socket at once",
    "": "a link is never switched off",
}
"""By how a name begins; the first that fits."""


def tree(counters: Mapping[str, int]) -> dict[str, Any]:
    """Every counter of gvproxy's, nested at the dots of its name."""
    root: dict[str, Any] = {}
    for name, source in SOURCES.items():
        *path, leaf = name.split(".")
        node = root
        for step in path:
            node = node.setdefault(step, {})
        # Workers are not asked at one instant, so that a difference may fall below nothing for a moment.
        node[leaf] = max(0, sum(sign * counters.get(ours, 0) for sign, ours in terms(source)))
    return root


def terms(source: str) -> Iterator[tuple[int, str]]:
    """The signs and names in ``a + b - c``."""
    sign = 1
    for word in source.split():
        if word in "+-":
            sign = 1 if word == "+" else -1
        else:
            yield sign, word


def table() -> str:
    """The two tables of ``docs/stats.md``."""
    real = [f"| `{name}` | `{source}` |" for name, source in SOURCES.items() if source]
    zero: dict[str, list[str]] = {}
    for name, source in SOURCES.items():
        if not source:
            zero.setdefault(_why_zero(name), []).append(f"`{name}`")
    grouped = [f"| {reason} | {', '.join(names)} |" for reason, names in zero.items()]
    lines = ["| gvproxy's counter | what it is here |", "| --- | --- |", *real]
    return "\n".join([*lines, "", "| why 0 | gvproxy's counters |", "| --- | --- |", *grouped, ""])


def _why_zero(name: str) -> str:
    return next(reason for start, reason in WHY_ZERO.items() if name.startswith(start))
