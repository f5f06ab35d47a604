"""vfkit's links: a frame a datagram, and ``VFKT`` before the first; what libkrun and krunkit speak too.

Such a VM connects its socket to the listener's path and from then on takes datagrams from the socket there alone. So
there is one socket for each VM: the first that a VM sends makes the path's socket that VM's, and a fresh one takes its
place on the path. Two VMs that connected before either had sent anything share theirs for good: those are relayed. The
system tells how many are connected; where it does not, each is taken to be alone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import ClassVar

from supervisor.attach.datagram import Datagram, DatagramListener, drain
from supervisor.attach.link import SocketLink
from supervisor.attach.options import NO_OPTIONS, Options
from supervisor.attach.relay import Relay
from supervisor.attach.unix_peers import Address, references
from supervisor.endpoints import UNIX, Endpoint, UrlForm, unix_form

LOOKS = 3
"""At the count of references, of which the least counts: a sender has one for a moment."""

log = logging.getLogger(__name__)


class VfkitListener(DatagramListener):
    """vfkit's ``--device virtio-net,unixSocketPath=PATH``."""

    kind = "vfkit"
    title = "vfkit"
    forms: ClassVar[tuple[UrlForm, ...]] = (unix_form("unixgram"), UNIX)
    magic = b"VFKT"

    def __init__(self, endpoint: Endpoint, options: Options = NO_OPTIONS) -> None:
        super().__init__(endpoint, options)
        assert self._sock is not None
        self._own_references = references(self._sock)
        """Of a socket nobody is connected to."""
        self._relays: set[Relay] = set()
        self._pathwise: Relay | None = None
        """For VMs that send to the path without being connected, while there are any; reads the path's socket."""

    def close(self) -> None:
        for relay in self._relays:
            sock = relay.release()
            if sock is not self._sock:
                sock.close()
        self._relays.clear()
        super().close()

    def attach_hint(self) -> str:
        return f"--device virtio-net,unixSocketPath={self.endpoint.path},mac=5a:94:ef:e4:0c:ee"

    def _on_sender(self, sock: socket.socket, first: Datagram) -> None:
        asyncio.get_running_loop().remove_reader(sock)
        try:
            self._sock = self._replace_socket()
        except OSError as error:
            log.error("dropped a VM on %s: no socket for the next: %s", self.endpoint, error)
            return self._listen()
        waiting = [datagram for datagram in (first, *drain(sock)) if self._may_attach(datagram)]
        senders = {datagram.sender for datagram in waiting}
        were_there = [self._end_earlier(sender) for sender in senders]
        connected = self._connected(sock)
        if connected == 1 and len(senders) == 1 and not any(were_there):
            self._attach_directly(sock, first, waiting)
            return self._listen()
        relays = []
        if connected:
            relays.append(self._relay(sock))
        else:
            sock.close()
        if connected == 0 or any(were_there):  # the next frame will come to the path's socket, whichever it is
            self._pathwise = self._relay(self._sock)
            relays.append(self._pathwise)
        else:
            self._listen()
        for datagram in waiting:
            relays[0].take(datagram)

    def _connected(self, sock: socket.socket) -> int:
        """How many sockets are connected to this one; 1 where the system does not say."""
        counts = [references(sock) for _ in range(LOOKS)]
        known = [count for count in counts if count is not None]
        return min(known) - self._own_references if known and self._own_references is not None else 1

    def _end_earlier(self, address: Address) -> bool:
        """End the link that a VM of this address had; whether the VM was still there."""
        for relay in tuple(self._relays):
            relay.forget(address)
        earlier = [link for link in self._links if link.address == address]
        is_there = any(not link.is_closed() for link in earlier)
        for link in earlier:
            link.end()
        return is_there

    def _relay(self, sock: socket.socket) -> Relay:
        relay = Relay(sock, self._may_attach, self._attach_relayed, self._on_idle)
        self._relays.add(relay)
        return relay

    def _attach_relayed(self, end: socket.socket, first: Datagram) -> None:
        self._end_earlier(first.sender)
        self._attach(SocketLink(end), first, [first.data])

    def _on_idle(self, relay: Relay) -> None:
        """No VM is left on it; one that is connected and silent may still come."""
        if relay is self._pathwise:
            self._pathwise = None
            self._relays.discard(relay)
            relay.release()
            self._listen()
        elif self._connected(relay.sock) == 0:
            self._relays.discard(relay)
            relay.release().close()

    def _watch(self) -> None:
        super()._watch()
        for relay in tuple(self._relays):
            relay.look_around()
            if not relay and relay in self._relays:
                self._on_idle(relay)
