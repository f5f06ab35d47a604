"""What a lease changes: the device's address, route and MTU, and the servers that names are looked up by."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable

from agent.dhcp_message import Lease
from agent.netlink import Routing
from agent.resolv_conf import ResolvConf
from agent.tap import set_mtu

log = logging.getLogger("agent")


class Configuration:
    """Puts leases into effect. No failure here ends the agent: the rest may still help."""

    def __init__(self, interface: str, mtu: int | None, resolv_conf: ResolvConf | None) -> None:
        """`mtu`: what was asked for on the command line, which counts more than the server's word."""
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._interface = interface
        self._mtu = mtu
        self._resolv_conf = resolv_conf
        self._routing = Routing(interface)
        self._applied: Lease | None = None

    def apply(self, lease: Lease) -> None:
        """Make it so; called again whenever the lease is renewed."""
        before, self._applied = self._applied, lease
        if before is not None and (before.address, before.routers) != (lease.address, lease.routers):
            self._remove(before)
            before = None
        if lease.mtu is not None and self._mtu is None and (before is None or before.mtu != lease.mtu):
            self._try(f"MTU {lease.mtu}", set_mtu, self._control, self._interface, lease.mtu)
        self._try(f"address {lease.address}", self._routing.set_address, lease.address, lease.lifetime)
        if before is None:
            self._route(lease)
        if self._resolv_conf is not None:
            self._try("resolv.conf", self._resolv_conf.write, lease.servers, lease.search)
        if lease != before:
            log.info("%s", _describe(self._interface, lease))

    def clear(self) -> None:
        """The lease is lost: the address must not be used any more (RFC 2131 4.4.5)."""
        if self._applied is not None:
            log.warning("lost the lease of %s", self._applied.address.ip)
            self._remove(self._applied)
            self._applied = None

    def close(self) -> None:
        """The address goes, names are looked up as before."""
        if self._applied is not None:
            self._remove(self._applied)
        if self._resolv_conf is not None:
            self._try("resolv.conf", self._resolv_conf.restore)
        self._routing.close()
        self._control.close()

    def _remove(self, lease: Lease) -> None:
        with contextlib.suppress(OSError):  # the kernel takes an address away by itself when its time is over
            self._routing.remove_address(lease.address)

    def _route(self, lease: Lease) -> None:
        if not lease.routers:
            return
        router = lease.routers[0]
        try:
            self._routing.add_default_route(router, onlink=router not in lease.address.network)
        except FileExistsError:
            log.warning("there is a default route already; it stays, and %s is not used", router)
        except OSError as error:
            log.warning("cannot set the route by %s: %s", router, error)

    def _try(self, what: str, change: Callable[..., None], *arguments: object) -> None:
        try:
            change(*arguments)
        except OSError as error:
            log.warning("cannot set %s: %s", what, error)


def _describe(interface: str, lease: Lease) -> str:
    parts = [f"{interface} has {lease.address}"]
    if lease.routers:
        parts.append(f"router {lease.routers[0]}")
    if lease.servers:
        parts.append(f"names by {', '.join(map(str, lease.servers))}")
    return ", ".join(parts)
