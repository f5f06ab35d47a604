"""``python -m supervisor.attach.tap_device FD NAME MTU [NETNS]``: opens a tap device, and passes it on over a socket.

A process of its own, because only one with a single thread may enter a user namespace (setns(2)), and because so no
thread of the supervisor ever is in a namespace it does not belong to. FD is the socket. NETNS is the path of a
network namespace; with it the user namespace it belongs to is entered, so that whoever made a rootless container may
give it a network.

The device is made, unless it exists; it gets the MTU and is switched on. Where the kernel can, each frame comes behind
a ``virtio_net_hdr`` and checksums and the segmentation of TCP are left undone (Documentation/networking/tuntap.rst of
Linux). With the descriptor goes the framing. Exit status 1: it did not work; standard error says why.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

# linux/if_tun.h, linux/sockios.h, linux/if.h, linux/nsfs.h, linux/sched.h
TUNGETFEATURES, TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x800454CF, 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFMTU, SIOCSIFMTU = 0x8913, 0x8914, 0x8921, 0x8922
IFF_UP = 0x1
NS_GET_USERNS = 0xB701
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

VNET_HEADER_LEN = 10
"""Of a virtio_net_hdr without `num_buffers`."""


def enter_namespace(path: str) -> None:
    """Make a network namespace, and the user namespace it belongs to, this process's own. Raises OSError."""
    network = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    user = fcntl.ioctl(network, NS_GET_USERNS)
    if not os.path.samestat(os.fstat(user), os.stat("/proc/self/ns/user")):
        _set_namespace(user, CLONE_NEWUSER)
    _set_namespace(network, CLONE_NEWNET)
    os.close(user)
    os.close(network)


def _set_namespace(descriptor: int, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(descriptor, kind) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"the namespace cannot be entered: {os.strerror(error)}")


def open_device(name: str, offloads: bool = True) -> tuple[int, str]:
    """A descriptor of the tap device, which is made unless it exists, and the framing. Raises OSError.

    `offloads`: use them where the kernel has them.
    """
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        (features,) = struct.unpack("=I", fcntl.ioctl(tap, TUNGETFEATURES, bytes(4)))
        vnet = features & IFF_VNET_HDR if offloads else 0
        fcntl.ioctl(tap, TUNSETIFF, _request(name, struct.pack("=H", IFF_TAP | IFF_NO_PI | vnet)))
        if vnet:
            fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER_LEN))
            fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    except BaseException:
        os.close(tap)
        raise
    return tap, "tap-vnet" if vnet else "tap"


def set_up(name: str, mtu: int) -> None:
    """Set the MTU and switch the device on, as far as it is not so already. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        (now,) = struct.unpack_from("=i", fcntl.ioctl(control, SIOCGIFMTU, _request(name)), 16)
        if now != mtu:
            fcntl.ioctl(control, SIOCSIFMTU, _request(name, struct.pack("=i", mtu)))
        (flags,) = struct.unpack_from("=H", fcntl.ioctl(control, SIOCGIFFLAGS, _request(name)), 16)
        if not flags & IFF_UP:
            fcntl.ioctl(control, SIOCSIFFLAGS, _request(name, struct.pack("=H", flags | IFF_UP)))


def _request(name: str, value: bytes = b"") -> bytes:
    """A struct ifreq: the name, then a union of 24 bytes."""
    return struct.pack("16s24s", os.fsencode(name), value)


def main(channel: str, name: str, mtu: str, netns: str = "") -> int:
    """Open, set up, pass on."""
    try:
        if netns:
            enter_namespace(netns)
        tap, framing = open_device(name)
        set_up(name, int(mtu))
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        return 1
    with socket.socket(fileno=int(channel)) as passing:
        socket.send_fds(passing, [framing.encode()], [tap])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
