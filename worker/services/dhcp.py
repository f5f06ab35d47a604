"""The DHCP server (RFC 2131, options: RFC 2132, 3046, 3397, 4702's hostname limits).

Which address a guest gets is the supervisor's to say, since leases outlive workers and belong to a network, not to a
VM. So an exchange has two halves, and nothing here waits::

    receive(payload) -> Exchange, whose `ask` goes to the supervisor
    answer(exchange, lease or Refused or None) -> Reply, payload and where to send it

A reply goes back where the message came from, and to everybody where that is nowhere: a client without an address hears
a broadcast whether it thought of the broadcast flag or not, and there is nobody else on the link. Of RFC 2131 4.1 this
leaves the relay, which is answered at its own address.

A lease granted before is remembered: while the supervisor is away (it restarts, it is upgraded) the guest still renews.
This server is the only one of its network, so it refuses a wrong address at once (DHCPNAK) also where it has no record
of the client. Left out: BOOTP, option overload on receipt (52), authentication (RFC 3118), leases by client id.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import dpkt
from dpkt import dhcp

from proto.messages import Lease, LeaseRelease, LeaseRequest, Network
from worker.addr import ipv4_text, mac_text, pack_ipv4
from worker.services.frames import BROADCAST_MAC

SERVER_PORT = 67
CLIENT_PORT = 68
MAX_MESSAGE_SIZE = 4096
"""Bytes; real clients send under 600."""
MIN_MESSAGE_SIZE = 300
"""Bytes; RFC 1542 2.1."""
MAX_OPTION_LEN = 255
MAX_CLIENTS = 16
"""Hardware addresses behind one VM (itself, a bridge inside it): a hostile guest must not empty the network's pool."""
MAX_DECLINES = 8
"""Addresses one VM may declare to be in use, for the same reason: the supervisor sets each aside."""
MAX_HOSTNAME_LEN = 63
FLAG_BROADCAST = 0x8000
ANY_ADDRESS = bytes(4)
BROADCAST_ADDRESS = b"\xff" * 4
OPT_RELAY_AGENT = 82
OPT_DOMAIN_SEARCH = 119
_HOSTNAME_CHARS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")


class Kind(enum.IntEnum):
    """DHCP message types (RFC 2132 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


FROM_CLIENT = (Kind.DISCOVER, Kind.REQUEST, Kind.DECLINE, Kind.RELEASE, Kind.INFORM)


@dataclass(frozen=True, slots=True)
class Request:
    """A client's message; addresses are 4 bytes, all zero where not given."""

    kind: Kind
    xid: int
    flags: int
    ciaddr: bytes
    giaddr: bytes
    chaddr: bytes
    requested: bytes
    server_id: bytes
    hostname: str
    client_id: bytes
    relay_agent: bytes
    src_mac: bytes
    src: bytes
    sport: int

    @property
    def wanted(self) -> bytes:
        """The address the client wants or has (RFC 2131 4.3.2)."""
        return self.requested if self.requested != ANY_ADDRESS else self.ciaddr


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and what the supervisor must say before it can be answered."""

    request: Request
    ask: LeaseRequest | LeaseRelease | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The supervisor has no address for this client."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A datagram from the gateway's port 67."""

    payload: bytes
    dst_mac: bytes
    dst: bytes
    dport: int


class DhcpServer:
    """The server of one VM's link."""

    def __init__(self, network: Network, vm_id: str) -> None:
        self._vm_id = vm_id
        self._leased: dict[bytes, tuple[bytes, float]] = {}
        kinds = (f"dhcp.{kind.name.lower()}" for kind in Kind)
        self.counters = dict.fromkeys((*kinds, "dhcp.malformed", "dhcp.ignored", "dhcp.too_many_clients"), 0)
        self.update(network)

    def update(self, network: Network) -> None:
        """The network changed; answers say so from now on."""
        self._subnet = IPv4Network(network.subnet, strict=False)
        self._gateway = pack_ipv4(network.gateway_ip)
        self._lease_time = network.lease_time
        self._mtu = network.mtu
        self._domain = _domain_option(network.search_domains)
        self._search = _search_option(network.search_domains)

    def receive(self, payload: bytes, src_mac: bytes, src: bytes, sport: int, now: float) -> Exchange | None:
        """Read a client's message; None where there is nothing to do about it. `now` is monotonic seconds."""
        request = pull_request(payload, src_mac, src, sport)
        if request is None:
            self.counters["dhcp.malformed"] += 1
            return None
        self.counters[f"dhcp.{request.kind.name.lower()}"] += 1
        if request.server_id not in (ANY_ADDRESS, self._gateway):
            self.counters["dhcp.ignored"] += 1  # the client took another server's offer
            return None
        if request.kind is Kind.INFORM:
            return Exchange(request, None)
        if request.kind in (Kind.RELEASE, Kind.DECLINE):
            return self._give_back(request)
        wanted = "" if request.wanted == ANY_ADDRESS else ipv4_text(request.wanted)
        commit = request.kind is Kind.REQUEST
        if commit and (not wanted or IPv4Address(request.wanted) not in self._subnet):
            return Exchange(request, None)  # from another network: refused without asking (RFC 2131 4.3.2)
        if not self._admit(request.chaddr, now):
            self.counters["dhcp.too_many_clients"] += 1
            return None
        return Exchange(request, LeaseRequest(self._vm_id, mac_text(request.chaddr), wanted, request.hostname, commit))

    def answer(self, exchange: Exchange, lease: Lease | Refused | None, now: float) -> Reply | None:
        """The answer to a client, given the supervisor's (None: it gave none in time); `now` is monotonic seconds."""
        request = exchange.request
        if request.kind is Kind.INFORM:
            return self._reply(request, Kind.ACK, ANY_ADDRESS)
        if isinstance(exchange.ask, LeaseRelease):
            return None
        if exchange.ask is None:
            return self._reply(request, Kind.NAK, ANY_ADDRESS)
        address = self._address(request, lease, now)
        if address is None:
            return None
        if request.kind is Kind.DISCOVER:
            return None if address == ANY_ADDRESS else self._reply(request, Kind.OFFER, address)
        if address == ANY_ADDRESS or address != request.wanted:
            return self._reply(request, Kind.NAK, ANY_ADDRESS)
        self._leased[request.chaddr] = (address, now + self._lease_time)
        return self._reply(request, Kind.ACK, address)

    def _give_back(self, request: Request) -> Exchange | None:
        self._leased.pop(request.chaddr, None)
        declined = request.kind is Kind.DECLINE
        if request.wanted == ANY_ADDRESS or (declined and self.counters["dhcp.decline"] > MAX_DECLINES):
            self.counters["dhcp.ignored"] += 1
            return None
        mac, ip = mac_text(request.chaddr), ipv4_text(request.wanted)
        return Exchange(request, LeaseRelease(self._vm_id, mac, ip, declined))

    def _admit(self, chaddr: bytes, now: float) -> bool:
        if chaddr in self._leased:
            return True
        self._leased = {mac: lease for mac, lease in self._leased.items() if now < lease[1]}
        if len(self._leased) >= MAX_CLIENTS:
            return False
        self._leased[chaddr] = (ANY_ADDRESS, now + self._lease_time)
        return True

    def _address(self, request: Request, lease: Lease | Refused | None, now: float) -> bytes | None:
        """What the client may have: an address, ANY_ADDRESS for none, None where only silence is right."""
        if isinstance(lease, Refused):
            return ANY_ADDRESS
        if lease is not None:
            return pack_ipv4(lease.ip)
        address, until = self._leased.get(request.chaddr, (ANY_ADDRESS, 0.0))
        return address if address != ANY_ADDRESS and now < until else None

    def _reply(self, request: Request, kind: Kind, yiaddr: bytes) -> Reply:
        self.counters[f"dhcp.{kind.name.lower()}"] += 1
        relayed = request.giaddr != ANY_ADDRESS
        refused = kind is Kind.NAK
        flags = request.flags | (FLAG_BROADCAST if refused and relayed else 0)
        message = dhcp.DHCP(
            op=dhcp.DHCP_OP_REPLY,
            xid=request.xid,
            flags=flags,
            yiaddr=int.from_bytes(yiaddr, "big"),
            giaddr=int.from_bytes(request.giaddr, "big"),
            chaddr=request.chaddr,
            opts=self._options(request, kind),
        )
        payload = bytes(message).ljust(MIN_MESSAGE_SIZE, b"\0")
        if relayed:
            return Reply(payload, request.src_mac, request.giaddr, SERVER_PORT)
        if request.src == ANY_ADDRESS or refused:
            return Reply(payload, BROADCAST_MAC, BROADCAST_ADDRESS, request.sport)
        return Reply(payload, request.src_mac, request.src, request.sport)

    def _options(self, request: Request, kind: Kind) -> list[tuple[int, bytes]]:
        """In ascending order, the relay agent's last (RFC 3046 2.2)."""
        options = [(dhcp.DHCP_OPT_MSGTYPE, bytes([kind])), (dhcp.DHCP_OPT_SERVER_ID, self._gateway)]
        if kind is not Kind.NAK:
            options += [
                (dhcp.DHCP_OPT_NETMASK, self._subnet.netmask.packed),
                (dhcp.DHCP_OPT_ROUTER, self._gateway),
                (dhcp.DHCP_OPT_DNS_SVRS, self._gateway),
                (dhcp.DHCP_OPT_MTUSIZE, self._mtu.to_bytes(2, "big")),
                (dhcp.DHCP_OPT_NISTIMESERV, self._gateway),  # 42 is the NTP server in RFC 2132 8.3
            ]
            if self._domain:
                options.append((dhcp.DHCP_OPT_DOMAIN, self._domain))
            if self._search:
                options.append((OPT_DOMAIN_SEARCH, self._search))
        if kind in (Kind.OFFER, Kind.ACK) and request.kind is not Kind.INFORM:
            options.append((dhcp.DHCP_OPT_LEASE_SEC, self._lease_time.to_bytes(4, "big")))
        if request.client_id:
            options.append((dhcp.DHCP_OPT_CLIENT_ID, request.client_id))  # RFC 6842
        options.sort()
        if request.relay_agent:
            options.append((OPT_RELAY_AGENT, request.relay_agent))
        return options


def pull_request(payload: bytes, src_mac: bytes, src: bytes, sport: int) -> Request | None:
    """A client's message; None where it is none (a reply, BOOTP, another hardware, too long, garbled)."""
    if len(payload) > MAX_MESSAGE_SIZE:
        return None
    try:
        message = dhcp.DHCP(payload)
    except (dpkt.UnpackError, IndexError):  # dpkt reads an option's length without looking whether it is there
        return None
    if (message.op, message.hrd, message.hln, message.magic) != (dhcp.DHCP_OP_REQUEST, 1, 6, dhcp.DHCP_MAGIC):
        return None
    options: dict[int, bytes] = {}
    for code, value in message.opts:
        options.setdefault(code, value)
    kind = options.get(dhcp.DHCP_OPT_MSGTYPE, b"")
    if len(kind) != 1 or kind[0] not in FROM_CLIENT:
        return None
    return Request(
        kind=Kind(kind[0]),
        xid=message.xid,
        flags=message.flags,
        ciaddr=message.ciaddr.to_bytes(4, "big"),
        giaddr=message.giaddr.to_bytes(4, "big"),
        chaddr=message.chaddr,
        requested=_address_option(options, dhcp.DHCP_OPT_REQ_IP),
        server_id=_address_option(options, dhcp.DHCP_OPT_SERVER_ID),
        hostname=_hostname(options.get(dhcp.DHCP_OPT_HOSTNAME, b"")),
        client_id=options.get(dhcp.DHCP_OPT_CLIENT_ID, b""),
        relay_agent=options.get(OPT_RELAY_AGENT, b""),
        src_mac=src_mac,
        src=src,
        sport=sport or CLIENT_PORT,
    )


def _address_option(options: dict[int, bytes], code: int) -> bytes:
    value = options.get(code, b"")
    return value if len(value) == 4 else ANY_ADDRESS


def _hostname(raw: bytes) -> str:
    """Option 12 where it is a host name, else empty: it ends up in logs, in DNS and on the dashboard."""
    name = raw.rstrip(b"\0")
    return name.decode("ascii") if len(name) <= MAX_HOSTNAME_LEN and _HOSTNAME_CHARS.issuperset(name) else ""


def _labels(domains: tuple[str, ...]) -> list[list[bytes]]:
    """Each domain's labels, encoded; what is no domain (RFC 1035 2.3.4) is left out."""
    found = []
    for domain in domains:
        try:
            labels = [label.encode("idna") for label in domain.strip(".").split(".") if label]
        except UnicodeError:
            continue
        if labels:
            found.append(labels)
    return found


def _domain_option(domains: tuple[str, ...]) -> bytes:
    """The first search domain, as the domain name of clients that do not know option 119."""
    return next((b".".join(labels) for labels in _labels(domains)), b"")[:MAX_OPTION_LEN]


def _search_option(domains: tuple[str, ...]) -> bytes:
    """RFC 3397, uncompressed; domains that do not fit the one option are left out: the first ones count most."""
    option = b""
    for labels in _labels(domains):
        encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
        if len(option) + len(encoded) <= MAX_OPTION_LEN:
            option += encoded
    return option
