"""Who is at the other end of a unix datagram socket: the system does not say when somebody comes or goes, but it can be
asked."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct

Address = str | bytes
"""A path, or a name of Linux's abstract kind: any bytes that its owner chose."""

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h; sock_diag(7)
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
UDIAG_SHOW_PEER = 4
UNIX_DIAG_PEER = 2
ANY = 0xFFFFFFFF
NLMSGHDR = struct.Struct("=IHHII")
UNIX_DIAG_REQ = struct.Struct("=BBHIIIII")
UNIX_DIAG_MSG_SIZE = 16
RTATTR = struct.Struct("=HH")
INODE = struct.Struct("=I")
TABLE_LINE = re.compile(rb"[0-9a-f]+: ([0-9A-F]{8}) [0-9A-F]{8} [0-9A-F]{8} [0-9A-F]{4} [0-9A-F]{2} +(\d+)\s")
"""Of /proc/net/unix: the references, and the inode."""


def shown(address: Address) -> str:
    """For logs and messages."""
    name = os.fsencode(address) if isinstance(address, str) else b"@" + address[1:]
    text = name.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def references(*socks: socket.socket) -> list[int | None]:
    """How many hold each socket in the kernel: itself, each socket that is connected to it, and for a moment whoever is
    sending to it. None: the system does not say (proc_pid_net(5)).

    A path may have a newline in it, and behind that what looks like a line about another's socket: the most counts.
    """
    inodes = [os.fstat(sock.fileno()).st_ino for sock in socks]
    wanted, found = frozenset(inodes), dict[int, int]()
    with contextlib.suppress(OSError), open("/proc/net/unix", "rb") as table:
        for line in table:
            match = TABLE_LINE.match(line)
            if match and int(match[2]) in wanted:
                found[int(match[2])] = max(found.get(int(match[2]), 0), int(match[1], 16))
    return [found.get(inode) for inode in inodes]


def is_peer_gone(sock: socket.socket) -> bool:
    """Whether the socket that this one is connected to has been closed; not when it cannot be found out."""
    with contextlib.suppress(OSError):
        return _peer_inode(sock) == 0
    try:
        address = sock.getpeername()
    except OSError:
        return True
    return not is_bound(address)


def is_bound(address: Address) -> bool:
    """Whether a datagram socket has that address; also when it cannot be found out."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:  # connected to somebody (EPERM), not for us (EACCES), or no descriptor is left (EMFILE)
        return True
    return True


def _peer_inode(sock: socket.socket) -> int:
    """Of the socket at the other end; 0: it is closed. Raises OSError where the system does not say."""
    inode = os.fstat(sock.fileno()).st_ino
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError("no netlink")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG) as netlink:
        request = UNIX_DIAG_REQ.pack(socket.AF_UNIX, 0, 0, ANY, inode & ANY, UDIAG_SHOW_PEER, ANY, ANY)
        netlink.send(NLMSGHDR.pack(NLMSGHDR.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0) + request)
        answer = netlink.recv(4096)  # the kernel answers before send returns
    _, kind, *_ = NLMSGHDR.unpack_from(answer)
    if kind != SOCK_DIAG_BY_FAMILY:
        raise OSError("no unix_diag")
    at = NLMSGHDR.size + UNIX_DIAG_MSG_SIZE
    while at + RTATTR.size <= len(answer):
        length, attribute = RTATTR.unpack_from(answer, at)
        if attribute == UNIX_DIAG_PEER:
            peer: int = INODE.unpack_from(answer, at + RTATTR.size)[0]
            return peer
        at += max(RTATTR.size, (length + 3) & ~3)
    return 0
