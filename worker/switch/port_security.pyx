# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""What a VM may send to others: only what it says as itself.

The worker of the VM that sends asks here, and so does each worker that receives, so that even a worker that a guest has
broken cannot speak for another VM. The sender's knows what the supervisor has granted, and lets nothing else out; a
receiver's may learn of a new address a moment after its first packet, and refuses only what is known as another's.

Nobody speaks as the gateway, or for an address it stands for, and DHCP is the gateway's alone, also where port security
is off. With it the source MAC, the IPv4 source and what an ARP packet (RFC 826) claims must be the VM's own. IPv6
sources are not known to anybody, but no VM is another's router.

What a packet is wrapped in is looked behind: tags of 802.1Q, as Linux takes off any number of VLAN 0, and the SNAP of
RFC 1042 and 802.1H, which other systems take for Ethernet's own type. What has more of them than anybody needs is taken
for forged.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from worker.core cimport Peer
from worker.lists cimport Node
from worker.switch.ipv6_guard cimport is_routers
from worker.wire._cursor cimport load_u16
from worker.wire.addr cimport Addr, addr_eq, addr_from_v4
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6
from worker.wire.ipv4 cimport IPPROTO_UDP_, IPV4_HEADER_LEN
from worker.wire.udp cimport UDP_HEADER_LEN

cdef enum:
    ETHERTYPE_VLAN = 0x8100  # IEEE 802.1Q
    ETHERTYPE_SERVICE_VLAN = 0x88a8
    VLAN_TAG_LEN = 4
    SNAP_LEN = 8
    LONGEST_802_3 = 1500  # in the type's place: what is not longer is a length
    MAX_WRAPPERS = 2
    ARP_LEN = 28  # of Ethernet and IPv4
    ARP_SENDER_MAC = 8
    ARP_SENDER_IP = 14
    ARP_TARGET_IP = 24
    PORT_DHCP_SERVER = 67
    PORT_DHCP_CLIENT = 68
    FRAGMENT_OFFSET = 0x1fff
    SNAP_BRIDGE_TUNNEL = 0xf8  # 802.1H, in the last byte of SNAP's organization

cdef const uint8_t* SNAP = b"\xaa\xaa\x03\x00\x00"


cdef bint is_gateways(const Core* core, const Addr* ip) noexcept nogil:
    """The gateway's own address, or one that it stands for."""
    cdef int i
    if addr_eq(ip, &core.gateway_ip):
        return True
    for i in range(core.nat_count):
        if addr_eq(ip, &core.nat[i].guest_side):
            return True
    return False


cdef bint has_ip(const Identity* who, const Addr* ip) noexcept nogil:
    cdef int i
    for i in range(who.ip_count):
        if addr_eq(ip, &who.ips[i]):
            return True
    return False


cdef bint is_taken(const Core* core, const Addr* ip) noexcept nogil:
    """Whether our own guest or a peer is known to have an address."""
    cdef const Node* node = core.switch.peers.next
    if has_ip(&core.switch.guest, ip):
        return True
    while node != &core.switch.peers:
        if has_ip(&(<const Peer*>node.owner).identity, ip):
            return True
        node = node.next
    return False


cdef inline bint is_unspecified(const uint8_t* ip) noexcept nogil:
    return ip[0] == 0 and ip[1] == 0 and ip[2] == 0 and ip[3] == 0


cdef int source_ip(const Core* core, const Identity* who, const uint8_t* ip) noexcept nogil:
    """What to think of an IPv4 address (not 0.0.0.0) that a VM says is its own; a `Speech`."""
    cdef Addr claimed = addr_from_v4(ip)
    if core.switch.port_security and has_ip(who, &claimed):
        return SPEECH_FINE
    if is_gateways(core, &claimed):
        return SPEECH_FORGED_IP
    if not core.switch.port_security:
        return SPEECH_FINE
    if who == &core.switch.guest:
        return SPEECH_FORGED_IP if who.ip_count else SPEECH_UNCONFIRMED
    return SPEECH_FORGED_IP if is_taken(core, &claimed) else SPEECH_FINE


cdef bint is_dhcp(const uint8_t* packet, size_t length) noexcept nogil:
    """Whether a packet of at least a header is UDP from or to a port of DHCP (RFC 2131 section 4.1)."""
    cdef size_t header_len = (packet[0] & 15) * 4
    cdef int port
    if packet[9] != IPPROTO_UDP_ or load_u16(packet + 6) & FRAGMENT_OFFSET or length < header_len + UDP_HEADER_LEN:
        return False
    port = load_u16(packet + header_len + 2)
    return port == PORT_DHCP_SERVER or port == PORT_DHCP_CLIENT


cdef int speech_of_ipv4(const Core* core, const Identity* who, const uint8_t* packet, size_t length) noexcept nogil:
    if length < IPV4_HEADER_LEN:
        return SPEECH_FORGED_IP  # a packet without a sender
    if is_unspecified(packet + 12) or is_dhcp(packet, length):
        return SPEECH_LOCAL
    return source_ip(core, who, packet + 12)


cdef int speech_of_arp(
    const Core* core, const Identity* who, const uint8_t* mac, const uint8_t* packet, size_t length
) noexcept nogil:
    """`mac`: the frame's source, which is looked at already."""
    cdef Addr target
    if length < ARP_LEN or load_u16(packet + 2) != ETHERTYPE_IPV4 or packet[4] != 6 or packet[5] != 4:
        return SPEECH_FORGED_IP  # nothing of this network's
    if memcmp(packet + ARP_SENDER_MAC, core.gateway_mac, 6) == 0:
        return SPEECH_FORGED_MAC
    if core.switch.port_security and memcmp(packet + ARP_SENDER_MAC, mac, 6) != 0:
        return SPEECH_FORGED_MAC
    target = addr_from_v4(packet + ARP_TARGET_IP)
    if is_gateways(core, &target):
        return SPEECH_LOCAL
    if is_unspecified(packet + ARP_SENDER_IP):
        return SPEECH_FINE  # a probe (RFC 5227 section 2.1.1) claims nothing
    return source_ip(core, who, packet + ARP_SENDER_IP)


cdef bint is_wrapped(int ethertype, const uint8_t* rest, size_t length) noexcept nogil:
    """Whether an EtherType says, with what follows it, that another comes."""
    if ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_SERVICE_VLAN:
        return length >= VLAN_TAG_LEN
    return (
        ethertype <= LONGEST_802_3 and length >= SNAP_LEN and memcmp(rest, SNAP, 5) == 0
        and (rest[5] == 0 or rest[5] == SNAP_BRIDGE_TUNNEL)
    )


cdef int speech_of(const Core* core, const Identity* who, const uint8_t* frame, size_t length) noexcept nogil:
    """What to think of a frame of at least an Ethernet header that a VM sends to others; a `Speech`."""
    cdef const uint8_t* mac = frame + 6
    cdef size_t at = ETHERNET_HEADER_LEN
    cdef int ethertype = load_u16(frame + 12)
    cdef int wrappers = 0
    if memcmp(mac, core.gateway_mac, 6) == 0:
        return SPEECH_FORGED_MAC
    if core.switch.port_security and (not who.known or memcmp(mac, who.mac, 6) != 0):
        return SPEECH_FORGED_MAC if who.known else SPEECH_UNCONFIRMED
    while is_wrapped(ethertype, frame + at, length - at):
        if wrappers == MAX_WRAPPERS:
            return SPEECH_FORGED_IP
        wrappers += 1
        at += SNAP_LEN if ethertype <= LONGEST_802_3 else VLAN_TAG_LEN
        ethertype = load_u16(frame + at - 2)
    if ethertype == ETHERTYPE_IPV4:
        return speech_of_ipv4(core, who, frame + at, length - at)
    if ethertype == ETHERTYPE_ARP:
        return speech_of_arp(core, who, mac, frame + at, length - at)
    if ethertype == ETHERTYPE_IPV6 and core.switch.port_security and is_routers(frame + at, length - at):
        return SPEECH_FORGED_ROUTER
    return SPEECH_FINE
