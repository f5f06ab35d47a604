"""A connection to the API that becomes a VM's link: ``/connect``, which the API server hands over."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence

from proto.errors import RequestFailed
from proto.messages import AttachLink
from supervisor.attach.kinds import MAX_SHORT_MTU
from supervisor.attach.link import SocketLink
from supervisor.attach.listener import Attachment, prepare
from supervisor.endpoints import StreamEndpoint, TcpEndpoint, VsockEndpoint, bound_endpoint
from supervisor.forwards.sockets import overlap
from supervisor.networks import Network

MAX_FIRST_BYTES = 262144
"""As much as a worker takes."""


class HttpAttach:
    """Makes VMs of connections; `take` is a handler of `supervisor.handover`. Not of connections to `closed_at`: there
    it is as if there were no ``/connect``."""

    def __init__(
        self,
        networks: Mapping[str, Network],
        attach: Callable[[Network, Attachment], object],
        closed_at: Sequence[StreamEndpoint] = (),
    ) -> None:
        self._networks = networks
        self._attach = attach
        self._closed_at = closed_at

    def take(self, message: AttachLink, fd: int) -> None:
        """Attach a VM. Raises RequestFailed."""
        network = self._networks.get(message.network)
        if network is None:
            known = ", ".join(self._networks)
            raise RequestFailed.because("not-found", f"no network {message.network!r}; there is {known}")
        if message.framing == "stream16" and network.spec.mtu > MAX_SHORT_MTU:
            reason = f"network {network.name} has an MTU of {network.spec.mtu}; ask for /connect?framing=qemu"
            raise RequestFailed.because("bad-request", reason)
        if len(message.first_bytes) > MAX_FIRST_BYTES:
            raise RequestFailed.because("bad-request", f"{len(message.first_bytes)} bytes were read of it already")
        sock = socket.socket(fileno=os.dup(fd))
        try:
            peer, _ = prepare(sock, sock.getpeername())
            listener = bound_endpoint(sock)
        except OSError as error:
            sock.close()
            raise RequestFailed.because("unavailable", f"the connection is gone: {error}") from error
        if any(_is_at(listener, closed) for closed in self._closed_at):
            sock.close()
            raise RequestFailed.because("not-found", "404 page not found")
        attachment = Attachment(SocketLink(sock), "http", message.framing, str(listener), peer, message.first_bytes)
        self._attach(network, attachment)


def _is_at(local: StreamEndpoint, bound: StreamEndpoint) -> bool:
    """Whether a connection with that local end came by a socket bound there."""
    match local, bound:
        case TcpEndpoint(), TcpEndpoint():
            return local.port == bound.port and overlap(local.host, bound.host)
        case VsockEndpoint(), VsockEndpoint():
            return local.port == bound.port and bound.cid in (None, local.cid)
    return local == bound
