"""A Linux tap device: made, named, addressed and switched on by ioctl, in the network namespace asked for.

Documentation/networking/tuntap.rst of the Linux sources; netdevice(7). The device lives as long as its descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

# linux/if_tun.h, linux/sockios.h, linux/if.h, linux/if_arp.h, linux/sched.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
SIOCSIFHWADDR, SIOCSIFMTU, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8924, 0x8922, 0x8913, 0x8914
ARPHRD_ETHER = 1
IFF_UP = 0x1
CLONE_NEWNET = 0x40000000

MAX_NAME_LENGTH = 15
"""IFNAMSIZ without its final zero."""


def open_tap(name: str, mac: bytes | None = None, mtu: int | None = None) -> int:
    """Make the tap device `name`, switch it on and return its descriptor, non-blocking.

    Raises OSError where the kernel refuses (no /dev/net/tun, no CAP_NET_ADMIN, name taken, MTU out of range).
    """
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, TUNSETIFF, _request(name, struct.pack("=H", IFF_TAP | IFF_NO_PI)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if mac is not None:
                fcntl.ioctl(control, SIOCSIFHWADDR, _request(name, struct.pack("=H6s", ARPHRD_ETHER, mac)))
            if mtu is not None:
                fcntl.ioctl(control, SIOCSIFMTU, _request(name, struct.pack("=i", mtu)))
            answer = fcntl.ioctl(control, SIOCGIFFLAGS, _request(name))
            (flags,) = struct.unpack_from("=H", answer, 16)
            fcntl.ioctl(control, SIOCSIFFLAGS, _request(name, struct.pack("=H", flags | IFF_UP)))
    except BaseException:
        os.close(tap)
        raise
    return tap


@contextlib.contextmanager
def network_namespace(name: str | None) -> Iterator[None]:
    """Run the block with this thread in the namespace that ``ip netns`` calls `name`; None: stay.

    Descriptors opened inside keep working outside. Raises OSError where there is no such namespace.
    """
    if name is None:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(f"/run/netns/{name}")
        try:
            yield
        finally:
            _set_namespace(home)
    finally:
        os.close(home)


def _enter(path: str) -> None:
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_namespace(namespace)
    finally:
        os.close(namespace)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def _request(name: str, value: bytes = b"") -> bytes:
    """A struct ifreq: the name, then a union of 24 bytes."""
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_LENGTH:
        raise ValueError(f"interface name {name!r}: expected 1 to {MAX_NAME_LENGTH} bytes")
    return struct.pack("16s24s", encoded, value)
