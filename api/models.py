"""The bodies of ``/v1``: what is read, what is answered, and what ``/v1/openapi.json`` describes."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Literal

from flask import Response
from pydantic import BaseModel, ConfigDict, Field

from proto import messages
from proto.messages import ForwardProtocol, ForwardSource

Address = Annotated[str, Field(min_length=2, max_length=300)]


class Body(BaseModel):
    """What all bodies share: an unknown key is an error, not a surprise."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Error(Body):
    """Every answer that is not 2xx."""

    code: str = Field(description="Stable, for programs: `not-found`, `conflict`, ...")
    message: str = Field(description="One sentence for people.")


class Health(Body):
    """The service answers."""

    status: Literal["ok"] = "ok"
    vms: int


class Vm(Body):
    """An attached virtual machine."""

    id: str
    mac: str | None = Field(description="null until the guest has sent a frame")
    ip: str | None = Field(description="null until the guest uses an address")
    network: str
    link: str = Field(description="Kind of listener it is attached to: `qemu`")
    listener: str
    peer: str = Field(description="The other end of its socket: `uid=1000 pid=4242` or `127.0.0.1:53122`")
    worker_pid: int
    uptime: float = Field(description="Seconds since it was attached")
    restarts: int = Field(description="How often its worker was replaced")
    bytes_from_guest: int
    bytes_to_guest: int
    open_flows: int = Field(description="Open TCP and UDP flows")
    memory: int = Field(description="Resident memory of its worker, in bytes")
    cpu_seconds: float = Field(description="CPU time of its worker")
    open_files: int = Field(description="Open descriptors of its worker")

    @classmethod
    def fields_of(cls, vm: messages.Vm) -> dict[str, object]:
        """What the supervisor's answer says, in the API's terms."""
        counters = vm.counters
        return {
            "id": vm.id,
            "mac": vm.mac or None,
            "ip": vm.ip or None,
            "network": vm.network,
            "link": vm.link,
            "listener": vm.listener,
            "peer": vm.peer,
            "worker_pid": vm.worker_pid,
            "uptime": round(max(0.0, time.time() - vm.attached_at), 3),
            "restarts": vm.restarts,
            "bytes_from_guest": counters.get("link.rx_bytes", 0),
            "bytes_to_guest": counters.get("link.tx_bytes", 0),
            "open_flows": counters.get("tcp.flows", 0) + counters.get("udp.flows", 0),
            "memory": vm.memory,
            "cpu_seconds": vm.cpu_seconds,
            "open_files": vm.open_files,
        }

    @classmethod
    def of(cls, vm: messages.Vm) -> Vm:
        """One line of the list."""
        return cls.model_validate(cls.fields_of(vm))


class VmDetail(Vm):
    """A virtual machine with every counter of its worker."""

    counters: dict[str, int]

    @classmethod
    def of(cls, vm: messages.Vm) -> VmDetail:
        """Everything that is known of it."""
        return cls.model_validate(cls.fields_of(vm) | {"counters": vm.counters})


class VmList(Body):
    """All attached virtual machines."""

    vms: list[Vm]


class Network(Body):
    """A network that VMs are on."""

    name: str
    subnet: str
    gateway_ip: str
    gateway_mac: str
    host_ip: str = Field(description="The address that stands for the host's loopback")
    mtu: int
    mode: Literal["shared", "isolated"] = Field(description="Whether its VMs see each other, or each is alone")
    port_security: bool = Field(description="Whether a VM speaks to others only from its own MAC and address")
    macs: dict[str, str] = Field(description="The MACs of its VMs, each with its VM's id")

    @classmethod
    def of(cls, network: messages.NetworkInfo) -> Network:
        """What the supervisor's answer says, in the API's terms."""
        return cls.model_validate(asdict(network))


class NetworkList(Body):
    """All networks, the default one first."""

    networks: list[Network]


class ForwardRequest(Body):
    """A port of the host to forward to a VM."""

    local: Address = Field(
        examples=["127.0.0.1:8080"],
        description="`HOST:PORT` to listen on, without a host on all addresses, port 0: any free one; of `unix` a path",
    )
    remote: Address = Field(
        examples=["192.168.127.2:80"],
        description="`IP:PORT` or `NAME:PORT` of the VM; of `unix` `tcp://IP:PORT` or "
        "`ssh-tunnel://USER@IP:PORT/PATH?key=FILE`",
    )
    protocol: ForwardProtocol = "tcp"
    network: str = Field(default="default", max_length=100)
    vm: str = Field(
        default="",
        max_length=100,
        description="The VM that is meant, by id or MAC; empty: whichever has the address. Must be said on an isolated "
        "network. A forward to an id is not kept when the service restarts, as ids begin anew",
    )
    source: ForwardSource | None = Field(
        default=None, description="Whose address the VM sees; default: as the service is configured, which is `keep`"
    )


class Forward(Body):
    """A forwarded port."""

    local: str = Field(description="What `DELETE` takes; port 0 is replaced by the one allocated")
    remote: str
    protocol: ForwardProtocol
    network: str
    source: ForwardSource
    bound: str = Field(description="The address in fact listened on")
    vm: str | None = Field(description="The VM that serves it; null while no VM has the address, and over SSH")
    asked_vm: str | None = Field(description="The VM that was asked for, by id or MAC; null: whichever has the address")

    @classmethod
    def of(cls, forward: messages.Forward) -> Forward:
        """What the supervisor's answer says, in the API's terms."""
        return cls(
            local=forward.local,
            remote=forward.remote,
            protocol=forward.protocol,
            network=forward.network,
            source=forward.source,
            bound=forward.bound,
            vm=forward.vm_id or None,
            asked_vm=forward.vm or None,
        )


class ForwardList(Body):
    """All forwarded ports."""

    forwards: list[Forward]


class Lease(Body):
    """An address that belongs to a MAC."""

    network: str
    ip: str
    mac: str
    hostname: str | None
    vm: str | None
    static: bool
    expires_at: float | None = Field(description="Unix time; null for a static lease")

    @classmethod
    def of(cls, lease: messages.Lease) -> Lease:
        """What the supervisor's answer says, in the API's terms."""
        return cls(
            network=lease.network,
            ip=lease.ip,
            mac=lease.mac,
            hostname=lease.hostname or None,
            vm=lease.vm_id or None,
            static=lease.static,
            expires_at=lease.expires_at or None,
        )


class LeaseList(Body):
    """A network's leases."""

    leases: list[Lease]
    gateway_ip: str
    gateway_mac: str


class ZoneRecord(Body):
    """Names of a zone and their address."""

    ip: str = Field(max_length=64)
    name: str = Field(default="", max_length=255, description="The labels before the zone; empty: the zone itself")
    regexp: str = Field(default="", max_length=1000, description="RE2, matched against the labels before the zone")


class Zone(Body):
    """A DNS zone that the gateway answers itself."""

    name: str = Field(max_length=255, examples=["lab.internal."], description="Empty: every name is in it")
    records: list[ZoneRecord] = []
    default_ip: str = Field(default="", max_length=64, description="Of any other name of the zone")
    authoritative: bool | None = Field(
        default=None, description="Other names do not exist (true), or are asked upstream; null: by its name"
    )

    @classmethod
    def of(cls, zone: messages.Zone) -> Zone:
        """What the supervisor's answer says, in the API's terms."""
        records = [ZoneRecord(ip=record.ip, name=record.name, regexp=record.regexp) for record in zone.records]
        return cls(name=zone.name, records=records, default_ip=zone.default_ip, authoritative=zone.authoritative)

    def message(self) -> messages.Zone:
        """As the supervisor takes it."""
        records = tuple(messages.ZoneRecord(record.ip, record.name, record.regexp) for record in self.records)
        return messages.Zone(self.name, records, self.default_ip, self.authoritative)


class ZoneList(Body):
    """A network's zones, in the order they are asked."""

    zones: list[Zone]


def json_response(body: BaseModel, status: int = 200) -> Response:
    """`body` as an HTTP answer."""
    return Response(body.model_dump_json() + "\n", status, content_type="application/json")
