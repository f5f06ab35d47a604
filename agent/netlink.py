"""Addresses and routes of one network device, over rtnetlink(7), so that a guest needs no iproute2.

linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h. Each request waits for the kernel's acknowledgement, which comes at
once.
"""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Interface

NETLINK_ROUTE = 0
NLMSG_ERROR = 2
RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE = 20, 21, 24
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_CACHEINFO = 1, 2, 4, 6
RTA_OIF, RTA_GATEWAY = 4, 5
RT_TABLE_MAIN, RTPROT_DHCP, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 16, 0, 1
RTNH_F_ONLINK = 4
FOREVER = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_MAX_REPLY = 4096


class Routing:
    """What the kernel routes by, for one device. Its namespace is the one this was made in."""

    def __init__(self, interface: str) -> None:
        self._index = socket.if_nametoindex(interface)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._sequence = 0

    def close(self) -> None:
        """Addresses and routes stay."""
        self._socket.close()

    def set_address(self, address: IPv4Interface, lifetime: int) -> None:
        """Add the address, or make it last longer: the kernel takes it away after `lifetime` seconds."""
        attributes = _address_attributes(address)
        if address.network.prefixlen < 31:
            attributes += _attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
        attributes += _attribute(IFA_CACHEINFO, struct.pack("=IIII", lifetime, lifetime, 0, 0))
        self._ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, self._address_header(address) + attributes)

    def remove_address(self, address: IPv4Interface) -> None:
        """The routes over it go too."""
        self._ask(RTM_DELADDR, 0, self._address_header(address) + _address_attributes(address))

    def add_default_route(self, router: IPv4Address, onlink: bool) -> None:
        """`onlink`: the router is reached directly though no address of ours says so.

        Raises FileExistsError where there is a default route already.
        """
        header = _ROUTE.pack(
            *(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_DHCP, RT_SCOPE_UNIVERSE, RTN_UNICAST),
            RTNH_F_ONLINK if onlink else 0,
        )
        attributes = _attribute(RTA_GATEWAY, router.packed) + _attribute(RTA_OIF, struct.pack("=I", self._index))
        self._ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, header + attributes)

    def _address_header(self, address: IPv4Interface) -> bytes:
        return _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, RT_SCOPE_UNIVERSE, self._index)

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        """Send one request; raises OSError with what the kernel says against it."""
        self._sequence += 1
        flags |= NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            reply = self._socket.recv(_MAX_REPLY)
            _, kind, _, sequence, _ = _HEADER.unpack_from(reply)
            if kind == NLMSG_ERROR and sequence == self._sequence:
                (negative,) = struct.unpack_from("=i", reply, _HEADER.size)
                if negative:
                    raise OSError(-negative, os.strerror(-negative))
                return


def _address_attributes(address: IPv4Interface) -> bytes:
    return _attribute(IFA_LOCAL, address.packed) + _attribute(IFA_ADDRESS, address.packed)


def _attribute(kind: int, value: bytes) -> bytes:
    """A struct rtattr; all of ours are multiples of four bytes, so none needs padding."""
    return struct.pack("=HH", 4 + len(value), kind) + value
