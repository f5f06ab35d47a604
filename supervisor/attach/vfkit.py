"""vfkit's links: a frame a datagram, and ``VFKT`` before the first; what libkrun and krunkit speak too.

Such a VM connects its socket to the listener's path and from then on takes datagrams from the socket there alone. So
there is one socket for each VM: the first that a VM sends makes the path's socket that VM's, and a fresh one takes its
place on the path. Two VMs that connected before either had sent anything share theirs for good: those are relayed. The
system tells how many are connected; where it does not, each is taken to be alone.
"""

from __future__ import annotations

import asyncio
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


class VfkitListener(DatagramListener):
    """vfkit's ``--device virtio-net,unixSocketPath=PATH``."""

    kind = "vfkit"
    title = "vfkit"
    forms: ClassVar[tuple[UrlForm, ...]] = (unix_form("unixgram"), UNIX)
    magic = b"VFKT"

    def __init__(self, endpoint: Endpoint, options: Options = NO_OPTIONS) -> None:
        super().__init__(endpoint, options)
        assert self._sock is not None
        (self._own_references,) = references(self._sock)
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
            self._complaints.add(f"dropped a VM on {self.endpoint}: no socket for the next: {error}")
            return self._listen()
        waiting = [datagram for datagram in (first, *drain(sock)) if self._may_attach(datagram)]
        senders = {datagram.sender for datagram in waiting}
        were_there = [self._end_earlier(sender) for sender in senders]
        connected = min(self._connected(sock)[0] for _ in range(LOOKS))
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

    def _connected(self, *socks: socket.socket) -> list[int]:
        """How many sockets are connected to each of these; 1 where the system does not say."""
        own = self._own_references
        return [1 if count is None or own is None else count - own for count in references(*socks)]

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
        """No VM is left on it. One that is connected and silent may still come; `_watch` looks whether there is any."""
        if relay is self._pathwise:
            self._pathwise = None
            self._relays.discard(relay)
            relay.release()
            self._listen()

    def _watch(self) -> None:
        super()._watch()
        for relay in tuple(self._relays):
            relay.look_around()
        idle = [relay for relay in self._relays if not relay]
        if not idle:
            return
        for relay, connected in zip(idle, self._connected(*(relay.sock for relay in idle)), strict=True):
            if relay is self._pathwise:
                self._on_idle(relay)
            elif connected == 0:
                self._relays.discard(relay)
                relay.release().close()
