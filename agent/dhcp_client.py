"""The DHCP client's state machine (RFC 2131 section 4.4), without I/O: messages and the time go in, messages come out.

::

    link_up, receive, on_timer      the world to the client
    poll_at                         when on_timer is due
    take_output                     what is to be sent
    lease, expires_at               what holds now; None: no address

            link_up, no lease       link_up with a lease
                  |                          |
    +-------> SELECTING                  REBOOTING ----------+
    |             | OFFER                    | ACK           | no answer
    |  NAK, no    v                          v               v
    |  answer  REQUESTING ----- ACK ----> BOUND <--------------
    +-------------+                          | T1       ^
    |                                        v          | ACK
    |                                    RENEWING ------+
    |                                        | T2       |
    |          NAK, expiry                   v          |
    +----------------------------------- REBINDING -----+

The server is the host, one link away, so the client asks sooner and oftener than RFC 2131 4.1 has it on an Ethernet
full of strangers, and takes the first offer. Left out: DECLINE after an ARP probe, since such a server leases no
address that another guest may use; RELEASE, so that a VM that comes back finds its address again; INFORM.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random

from agent.dhcp_message import ANY, FOREVER, Kind, Lease, Message, pull_lease, pull_message, push_message

BROADCAST = IPv4Address(0xFFFFFFFF)
RETRANSMIT_FIRST, RETRANSMIT_LONGEST = 1.0, 16.0
"""s; doubled each time, and up to a tenth more or less (RFC 2131 4.1 begins at 4 and ends at 64)."""
MAX_TRIES = 4
"""REQUESTs without an answer before something else is tried."""
RENEW_PAUSE = 60.0
"""s between REQUESTs in RENEWING and REBINDING, at least (RFC 2131 4.4.5)."""


class State(enum.Enum):
    """RFC 2131 figure 5; INIT, INIT-REBOOT and the one after it are passed through at once."""

    DOWN = "no link yet"
    SELECTING = "SELECTING"
    REQUESTING = "REQUESTING"
    REBOOTING = "REBOOTING"
    BOUND = "BOUND"
    RENEWING = "RENEWING"
    REBINDING = "REBINDING"


ASKING = (State.REQUESTING, State.REBOOTING, State.RENEWING, State.REBINDING)
"""States in which an ACK or NAK is an answer."""


@dataclass(frozen=True)
class Outgoing:
    """A message, and the addresses of the packet it goes in."""

    payload: bytes
    src: IPv4Address
    dst: IPv4Address


class DhcpClient:
    """One device's client. Times are seconds of any clock that goes on while the machine sleeps."""

    def __init__(self, mac: bytes, random: Random, hostname: str = "") -> None:
        self.lease: Lease | None = None
        self.expires_at = math.inf
        self.state = State.DOWN
        self._mac = mac
        self._hostname = hostname
        self._random = random
        self._output: list[Outgoing] = []
        self._offer: Lease | None = None
        self._last = ANY
        """The address we had last: what is asked for first."""
        self._xid = 0
        self._began = self._asked_at = 0.0
        self._tries = 0
        self._due = math.inf
        self._renew_at = self._rebind_at = math.inf

    def link_up(self, now: float) -> None:
        """The link is there, maybe with another network behind it: see whether the lease still holds."""
        if self.lease is not None and now < self.expires_at:
            self._begin(State.REBOOTING, now)
        else:
            self._lose(now)

    def poll_at(self) -> float:
        """When `on_timer` has something to do; infinity: never."""
        return self._due

    def take_output(self) -> list[Outgoing]:
        """The messages to send, once."""
        output, self._output = self._output, []
        return output

    def on_timer(self, now: float) -> None:
        """Do what is due; nothing, if nothing is."""
        if now < self._due:
            return
        if now >= self.expires_at:
            self._lose(now)
        elif self.state is State.BOUND:
            self._begin(State.RENEWING, now)
        elif self.state is State.RENEWING and now >= self._rebind_at:
            self._begin(State.REBINDING, now)
        elif self.state is State.REBOOTING and self._tries == MAX_TRIES:
            self._rest()  # RFC 2131 3.2: the lease is still ours
        elif self.state is State.REQUESTING and self._tries == MAX_TRIES:
            self._begin(State.SELECTING, now)
        else:
            self._send(now)

    def receive(self, payload: bytes, now: float) -> None:
        """A message from the device; whatever is no answer to us is passed over."""
        message = pull_message(payload)
        if message is None or message.xid != self._xid or message.mac != self._mac:
            return
        if message.kind is Kind.NAK:
            self._refused(now)
        elif message.kind is Kind.OFFER and self.state is State.SELECTING:
            self._offered(message, now)
        elif message.kind is Kind.ACK and self.state in ASKING:
            self._granted(message)

    def _offered(self, message: Message, now: float) -> None:
        offer = pull_lease(message)
        if offer is None:
            return
        self._offer = offer
        self.state, self._asked_at, self._tries = State.REQUESTING, now, 0
        self._send(now)

    def _granted(self, message: Message) -> None:
        lease = pull_lease(message)
        if lease is None:
            return
        self.lease = lease
        self._last = lease.address.ip
        # RFC 2131 4.4.1: it runs from when we asked, not from when we were answered.
        self._renew_at = self._rebind_at = self.expires_at = math.inf
        if lease.lifetime != FOREVER:
            self._renew_at = self._asked_at + lease.renewal
            self._rebind_at = self._asked_at + lease.rebinding
            self.expires_at = self._asked_at + lease.lifetime
        self._rest()

    def _refused(self, now: float) -> None:
        if self.state is State.REQUESTING:
            # It offers and then refuses: ask again, but not in a tight circle.
            self._forget()
            self.state, self._due = State.SELECTING, now + RETRANSMIT_FIRST
        elif self.state in ASKING:
            self._lose(now)

    def _lose(self, now: float) -> None:
        """There is no lease (any more): begin anew."""
        self._forget()
        self._begin(State.SELECTING, now)

    def _forget(self) -> None:
        self.lease, self.expires_at = None, math.inf

    def _rest(self) -> None:
        self.state, self._due = State.BOUND, self._renew_at

    def _begin(self, state: State, now: float) -> None:
        """Begin a new exchange."""
        self.state = state
        self._xid = self._random.getrandbits(32)
        self._began = self._asked_at = now
        self._tries = 0
        self._send(now)

    def _send(self, now: float) -> None:
        self._tries += 1
        self._output.append(self._message(int(now - self._began)))
        if self.state is State.RENEWING:
            self._due = min(self._rebind_at, now + max(RENEW_PAUSE, (self._rebind_at - now) / 2))
        elif self.state is State.REBINDING:
            self._due = min(self.expires_at, now + max(RENEW_PAUSE, (self.expires_at - now) / 2))
        else:
            pause = min(RETRANSMIT_FIRST * 2 ** min(self._tries - 1, 10), RETRANSMIT_LONGEST)
            self._due = min(self.expires_at, now + pause * self._random.uniform(0.9, 1.1))

    def _message(self, secs: int) -> Outgoing:
        """What is said in the present state (RFC 2131 table 5)."""
        xid, mac, name = self._xid, self._mac, self._hostname
        if self.state is State.SELECTING:
            payload = push_message(Kind.DISCOVER, xid, mac, secs, requested=self._last, hostname=name)
        elif self.state is State.REQUESTING:
            assert self._offer is not None
            wanted, server = self._offer.address.ip, self._offer.server
            payload = push_message(Kind.REQUEST, xid, mac, secs, requested=wanted, server=server, hostname=name)
        elif self.state is State.REBOOTING:
            payload = push_message(Kind.REQUEST, xid, mac, secs, requested=self._last, hostname=name)
        else:
            assert self.lease is not None
            payload = push_message(Kind.REQUEST, xid, mac, secs, ciaddr=self._last, hostname=name)
            server = self.lease.server if self.state is State.RENEWING else BROADCAST
            return Outgoing(payload, self._last, server)
        return Outgoing(payload, ANY, BROADCAST)
