"""A Linux tap device: made or joined, named and switched on by ioctl, in the network namespace asked for.

Documentation/networking/tuntap.rst of the Linux sources; netdevice(7). A device made here lives as long as its
descriptor; one that was there before stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

# linux/if_tun.h, linux/sockios.h, linux/if.h, linux/if_arp.h, linux/sched.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
SIOCGIFHWADDR, SIOCSIFHWADDR = 0x8927, 0x8924
SIOCSIFMTU, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8922, 0x8913, 0x8914
ARPHRD_ETHER = 1
IFF_UP = 0x1
CLONE_NEWNET = 0x40000000

DEVICE = "/dev/net/tun"
MAX_NAME_LENGTH = 15
"""IFNAMSIZ without its final zero."""
REMEDIES = {
    errno.ENOENT: f"there is no {DEVICE}: modprobe tun; in a container, --device {DEVICE}",
    errno.ENODEV: "the kernel has no tun module: modprobe tun",
    errno.EPERM: "it takes CAP_NET_ADMIN: run as root; in a container, --cap-add NET_ADMIN",
    errno.EACCES: f"{DEVICE} may not be opened: run as root",
    errno.EBUSY: "another program holds it",
}


class TapError(Exception):
    """There will be no device, and the message says why."""


def open_tap(name: str, mac: bytes | None = None, mtu: int | None = None, existing: bool = False) -> int:
    """Make the tap device `name`, or join it where it is `existing`; switch it on.

    Returns its descriptor, non-blocking. `mac` and `mtu` None: as they are, or as the kernel chooses. Raises TapError.
    """
    if existing and not exists(name):
        raise TapError(f"there is no device {name} to join")
    try:
        tap = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(tap, TUNSETIFF, interface_request(name, struct.pack("=H", IFF_TAP | IFF_NO_PI)))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                if mac is not None:
                    value = struct.pack("=H6s", ARPHRD_ETHER, mac)
                    fcntl.ioctl(control, SIOCSIFHWADDR, interface_request(name, value))
                if mtu is not None:
                    set_mtu(control, name, mtu)
                _switch_on(control, name)
        except BaseException:
            os.close(tap)
            raise
    except OSError as error:
        raise TapError(_explain(name, error)) from error
    return tap


def exists(name: str) -> bool:
    """Whether this network namespace has a device of that name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def mac_of(name: str) -> bytes:
    """The device's MAC."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer: bytes = fcntl.ioctl(control, SIOCGIFHWADDR, interface_request(name))
    return answer[18:24]


def set_mtu(control: socket.socket, name: str, mtu: int) -> None:
    """`control` says in which namespace. Raises OSError where the MTU is out of the device's range."""
    fcntl.ioctl(control, SIOCSIFMTU, interface_request(name, struct.pack("=i", mtu)))


def _switch_on(control: socket.socket, name: str) -> None:
    answer = fcntl.ioctl(control, SIOCGIFFLAGS, interface_request(name))
    (flags,) = struct.unpack_from("=H", answer, 16)
    fcntl.ioctl(control, SIOCSIFFLAGS, interface_request(name, struct.pack("=H", flags | IFF_UP)))


def _explain(name: str, error: OSError) -> str:
    if error.errno == errno.EINVAL and exists(name):
        return f"{error.strerror}; {name} is there and no tap device, or the MTU is out of range"
    remedy = REMEDIES.get(error.errno or 0)
    return f"{error.strerror}; {remedy}" if remedy else str(error)


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


def interface_request(name: str, value: bytes = b"") -> bytes:
    """A struct ifreq: the name, then a union of 24 bytes."""
    return struct.pack("16s24s", name.encode(), value)
