"""What the engine asks Python to think about: the kinds of tuple that `Engine.take_upcalls` returns."""

from enum import IntEnum


class Upcall(IntEnum):
    """First item of an upcall tuple; the rest of the tuple is given beside each kind.

    Addresses are 16 bytes, IPv4 as ``::ffff:a.b.c.d``; ports are ints; a frame is a whole Ethernet frame (a
    fragmented datagram comes reassembled, with a frame longer than the MTU).
    """

    FRAME = 1
    """``(FRAME, frame)``: ARP, DHCP, a datagram to a LOCAL destination, ICMP."""
    VERDICT = 2
    """``(VERDICT, proto, dst, dport, frame)``: nothing is known of this destination. Answer with `set_verdict`, then
    `inject(frame)`."""
    STREAM = 3
    """``(STREAM, fd, src, sport, dst, dport)``: the guest connected to a LOCAL TCP destination; `fd` is a connected
    unix stream socket, now owned by the receiver."""
    LINK_CLOSED = 4
    """``(LINK_CLOSED, reason, by_guest)``: no more frames; reason is ``eof`` or what was wrong."""
    GUEST = 5
    """``(GUEST, mac, ip)``: the guest's source MAC (6 bytes) or IPv4 source address (16 bytes, or empty) is new."""
    ECHO = 6
    """``(ECHO, frame)``: an ICMP echo request to an address that is not LOCAL."""


class Action(IntEnum):
    """What to do with traffic to a destination (protocol, address, port)."""

    CARRY = 1
    """To the host address and port given."""
    LOCAL = 2
    """To Python: datagrams as FRAME, TCP connections as STREAM."""
    REFUSE = 3
    """RST for TCP, ICMP port unreachable for UDP."""
    UNREACHABLE = 4
    """ICMP network unreachable."""
    DROP = 5
    """Silence."""
