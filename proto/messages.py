"""Every message between Moorage's processes: one frozen dataclass each.

Who speaks to whom (``docs/architecture.md`` has the picture):

- supervisor -> zygote, over a unix SEQPACKET socket with descriptors attached: `Spawn`; zygote -> supervisor:
  `ZygoteReady`, `Spawned`, `NotSpawned`, `Exited`.
- worker -> supervisor, over ZeroMQ: `Hello`, `LeaseRequest`, `LeaseRelease`, `GuestSeen`, `LinkClosed`, `WorkerStats`.
- supervisor -> worker, over ZeroMQ: `GetStats`, `UpdateNetwork`, `RemoveForward`, `Shutdown`; and over the worker's
  SEQPACKET socket, because a descriptor travels with them: `AddForward`, `CallGuest`. What concerns the other VMs of a
  network is in `proto.switch`.
- supervisor and SSH carriers: `proto.ssh`.
- API -> supervisor, over ZeroMQ: the requests of the last section; every one is answered by the class named in its
  docstring, or by `Failure`.

Addresses are text (``192.168.127.2``), MACs are lower-case colon form, durations are seconds, sizes are bytes.
The codec (``proto/codec.py``) validates every field on receipt; a message of unknown type or shape is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from proto.logrus import LogFormat

Framing = Literal["stream32", "stream16", "messages", "tap", "tap-vnet"]
"""How frames lie on the link: a stream with 4-byte big-endian or 2-byte little-endian lengths, or a frame a message."""
CONNECT_FRAMINGS: dict[str, Framing] = {"": "stream16", "qemu": "stream32"}
"""By what ``/connect?framing=`` says."""

ForwardProtocol = Literal["tcp", "udp", "unix"]
ForwardSource = Literal["keep", "gateway"]
"""Whose address the guest sees: the client's own where it can answer it, or always the gateway's."""

NetworkMode = Literal["shared", "isolated"]
"""Whether VMs of a network see each other, or each is alone."""


@dataclass(frozen=True, slots=True)
class Empty:
    """The answer that only says: done."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A refused request."""

    code: Literal["bad-request", "not-found", "conflict", "in-use", "unavailable", "internal"]
    message: str
    """One sentence that names the thing and, where there is one, the remedy."""
    detail: str = ""
    """More than gvproxy's clients may be told, who compare the message: who holds what is taken, and what helps."""


# --- what describes a network and a VM ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ZoneRecord:
    """A name in a DNS zone: exact `name`, or `regexp` (`proto.patterns`) on the labels before the zone."""

    ip: str
    name: str = ""
    regexp: str = ""


@dataclass(frozen=True, slots=True)
class Zone:
    """A DNS zone answered by the gateway itself."""

    name: str
    """Fully qualified, ending in a dot: ``containers.internal.``"""
    records: tuple[ZoneRecord, ...] = ()
    default_ip: str = ""
    """Answered for any other name of the zone; empty: there is none."""
    authoritative: bool | None = None
    """Whether other names of the zone do not exist (True) or are the upstreams' to answer; None: by its name and
    contents (`worker.services.dns_zones`)."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A DNS server that is asked what no zone answers."""

    address: str
    port: int = 53


@dataclass(frozen=True, slots=True)
class Network:
    """What a worker must know of the network its VM is on."""

    name: str
    subnet: str
    """CIDR: ``192.168.127.0/24``"""
    gateway_ip: str
    gateway_mac: str
    host_ip: str
    """The address that stands for the host's loopback."""
    mtu: int
    lease_time: int
    zones: tuple[Zone, ...] = ()
    search_domains: tuple[str, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    domain_upstreams: dict[str, tuple[Upstream, ...]] = field(default_factory=dict)
    """Domain, ending in a dot -> the servers for it and what is below; the longest domain wins."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Host name (one label, lower case) -> its address; they are answered as ``HOST.NETWORK.internal.``"""
    nat: dict[str, str] = field(default_factory=dict)
    """Guest-side address -> host-side address, such as ``{"192.168.127.254": "127.0.0.1"}``."""
    link_local: bool = False
    """169.254.0.0/16 may be reached."""
    guest_api: bool = False
    """Port 80 of the gateway serves guests the forwarder routes of the API."""


# --- supervisor <-> zygote ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker. Descriptors: the VM's link, one socket or two pipes (to read, to write); the file that all
    traffic is captured to, where there is one; then the worker's end of its SEQPACKET socket."""

    vm_id: str
    framing: Framing
    network: Network
    control_address: str
    """ZeroMQ endpoint of the supervisor: ``ipc:///run/moorage/workers.sock``"""
    resync: bool = False
    """The link was in use by a worker that died: find the next frame boundary first."""
    guest_mac: str = ""
    """The VM's MAC where an earlier worker learned it; empty: not known yet."""
    first_bytes: bytes = b""
    """What was read from the link already; of messages, each behind its length as on a ``stream32``."""
    capture_interface: int = -1
    """The number of the VM's interface in the file of captures; -1: there is no such file."""
    log_level: str = "info"
    log_format: LogFormat = "text"
    ends_with_supervisor: bool = False
    """Otherwise it goes on without one, as the next takes it over."""


@dataclass(frozen=True, slots=True)
class ZygoteReady:
    """Everything a worker needs is loaded: from now on a worker starts in milliseconds."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker was forked."""

    vm_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class NotSpawned:
    """The system has no process for a worker."""

    vm_id: str
    error: int
    """The errno."""


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker ended."""

    pid: int
    status: int
    """As `os.waitstatus_to_exitcode`: negative for a signal."""


# --- worker <-> supervisor ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker is up and carries traffic."""

    vm_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A guest asks for an address. Answer: `Lease` or `Failure`."""

    vm_id: str
    mac: str
    requested_ip: str = ""
    """Empty: any."""
    hostname: str = ""
    commit: bool = False
    """False for DISCOVER (the address is kept aside), True for REQUEST (the lease is written to the state)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that belongs to a MAC."""

    network: str
    ip: str
    mac: str
    expires_at: float
    """Unix time; 0 for a static lease."""
    hostname: str = ""
    vm_id: str = ""
    static: bool = False


@dataclass(frozen=True, slots=True)
class LeaseRelease:
    """A guest gave its address back (DHCPRELEASE), or found it in use (DHCPDECLINE). Answer: `Empty`."""

    vm_id: str
    mac: str
    ip: str
    declined: bool = False


@dataclass(frozen=True, slots=True)
class GuestSeen:
    """Event: a guest uses this MAC and address (learned from its frames)."""

    vm_id: str
    mac: str
    ip: str
    """Empty: no IPv4 source address seen yet."""


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """Event: the VM's link ended; the worker exits after this."""

    vm_id: str
    reason: str
    """``eof``, or what was wrong: ``frame length 4294967295 is over the limit of 131072``."""
    by_guest: bool = True


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters of one worker; an event every second while there is traffic, and the answer to `GetStats`."""

    vm_id: str
    counters: dict[str, int]
    """By dotted name; `worker/counters.py` lists them."""


@dataclass(frozen=True, slots=True)
class GetStats:
    """Ask a worker for its counters now. Answer: `WorkerStats`."""


@dataclass(frozen=True, slots=True)
class UpdateNetwork:
    """The network's zones, upstreams or search domains changed. Answer: `Empty`."""

    network: Network


@dataclass(frozen=True, slots=True)
class AddForward:
    """Serve this forwarded port. Descriptor: the bound (TCP, unix: listening) socket. Answer: `Empty` or `Failure`."""

    forward_id: int
    protocol: Literal["tcp", "udp"]
    """What the guest speaks."""
    guest_ip: str
    guest_port: int
    source: ForwardSource = "keep"


@dataclass(frozen=True, slots=True)
class RemoveForward:
    """Close the descriptor of a forward; live connections go on. Answer: `Empty`."""

    forward_id: int


@dataclass(frozen=True, slots=True)
class CallGuest:
    """Open a connection to a TCP port of the guest. Descriptor: a connected stream socket, which is joined to it and
    closed when the guest refuses. Answer: `Empty` or `Failure`."""

    guest_ip: str
    guest_port: int
    first_bytes: bytes = b""
    """What was read of the socket already."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End now: the service stops or the VM is gone."""


# --- API <-> supervisor ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forward:
    """A forwarded port."""

    local: str
    """As the caller wrote it, port 0 replaced: ``127.0.0.1:8080``, ``:6443``, ``/run/vm/docker.sock``"""
    remote: str
    """``192.168.127.2:80``, ``web:80``; of a unix socket ``tcp://192.168.127.2:80`` or
    ``ssh-tunnel://core@192.168.127.2:22/run/docker.sock?key=/home/me/.ssh/id``"""
    protocol: ForwardProtocol = "tcp"
    network: str = "default"
    vm: str = ""
    """The VM that is meant, by id or MAC; empty: whichever has the address."""
    source: ForwardSource = "keep"
    bound: str = ""
    """The address in fact listened on, port filled in; of a unix socket its absolute path."""
    vm_id: str = ""
    """The VM that serves it; empty while no VM has the address."""


@dataclass(frozen=True, slots=True)
class Vm:
    """An attached VM as the API shows it."""

    id: str
    network: str
    link: str
    """Listener kind: ``qemu``"""
    listener: str
    """URL of the listener it came in by."""
    peer: str
    """What the socket tells of the other end: ``uid=1000 pid=4242`` or ``127.0.0.1:53122``."""
    worker_pid: int
    attached_at: float
    """Unix time."""
    restarts: int
    """How often its worker was replaced."""
    mac: str = ""
    ip: str = ""
    counters: dict[str, int] = field(default_factory=dict)
    memory: int = 0
    """Resident memory of the worker."""
    cpu_seconds: float = 0.0
    open_files: int = 0


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """A network as the API shows it."""

    name: str
    subnet: str
    gateway_ip: str
    gateway_mac: str
    host_ip: str
    mtu: int
    mode: NetworkMode
    port_security: bool
    macs: dict[str, str]
    """The MACs of its VMs, each with its VM's id."""


@dataclass(frozen=True, slots=True)
class ListNetworks:
    """Answer: `Networks`."""


@dataclass(frozen=True, slots=True)
class Networks:
    networks: tuple[NetworkInfo, ...]


@dataclass(frozen=True, slots=True)
class ListVms:
    """Answer: `Vms`."""


@dataclass(frozen=True, slots=True)
class Vms:
    vms: tuple[Vm, ...]


@dataclass(frozen=True, slots=True)
class ListLeases:
    """Answer: `Leases`."""

    network: str = "default"


@dataclass(frozen=True, slots=True)
class Leases:
    leases: tuple[Lease, ...]
    gateway_ip: str
    gateway_mac: str


@dataclass(frozen=True, slots=True)
class ListForwards:
    """Answer: `Forwards`."""


@dataclass(frozen=True, slots=True)
class Forwards:
    forwards: tuple[Forward, ...]


@dataclass(frozen=True, slots=True)
class Expose:
    """Forward a port. Answer: `Forward`, or `Failure` (``conflict``: already forwarded; ``in-use``: bind failed)."""

    local: str
    remote: str
    protocol: str = "tcp"
    network: str = "default"
    vm: str = ""
    """As in `Forward`; must be said on an isolated network, where addresses repeat."""
    source: ForwardSource | None = None
    """None: as the service is configured."""


@dataclass(frozen=True, slots=True)
class Unexpose:
    """Stop a forward; live connections go on. Answer: `Empty`, or `Failure` ``not-found``."""

    local: str
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class ListZones:
    """Answer: `Zones`."""

    network: str = "default"


@dataclass(frozen=True, slots=True)
class Zones:
    zones: tuple[Zone, ...]


@dataclass(frozen=True, slots=True)
class AddZone:
    """Add a zone, or put records before those of the zone of that name. Answer: `Empty`."""

    zone: Zone
    network: str = "default"


@dataclass(frozen=True, slots=True)
class RemoveZone:
    """Take back all that was added to a zone. Answer: `Empty`, or `Failure` ``not-found``."""

    name: str
    network: str = "default"


@dataclass(frozen=True, slots=True)
class SumStats:
    """Fresh counters of all workers. Answer: `Stats`."""


@dataclass(frozen=True, slots=True)
class Stats:
    counters: dict[str, int]
    """Summed over the workers, those that have ended included."""
    workers: int


@dataclass(frozen=True, slots=True)
class OpenTunnel:
    """The connection whose descriptor comes with this becomes one to a TCP port of a VM; answer: `Empty`."""

    ip: str
    """Or a name on the network."""
    port: int
    network: str = "default"
    first_bytes: bytes = b""
    """What was read of it already, behind the request."""


@dataclass(frozen=True, slots=True)
class AttachLink:
    """The connection whose descriptor comes with this is a VM's link. Over ``handover.sock``; answer: `Empty`."""

    framing: Framing
    network: str = "default"
    first_bytes: bytes = b""
    """What was read of it already, behind the request."""
