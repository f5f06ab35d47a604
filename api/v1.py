"""``/v1``: Moorage's own REST API. ``docs/api.md`` describes it for people, ``/v1/openapi.json`` for programs."""

from __future__ import annotations

from typing import TypeVar

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ValidationError

from api.handover import hand_over
from api.models import (
    Forward,
    ForwardList,
    ForwardRequest,
    Health,
    Lease,
    LeaseList,
    Network,
    NetworkList,
    Vm,
    VmDetail,
    VmList,
    Zone,
    ZoneList,
)
from api.openapi import Operations
from api.supervisor_client import ask
from proto import messages, pcapng
from proto.captures import OpenCapture
from proto.errors import RequestFailed

blueprint = Blueprint("v1", __name__, url_prefix="/v1")
operations = Operations(blueprint)

MAX_SNAPLEN_DIGITS = 6
"""A frame has at most 131,072 bytes."""

BodyT = TypeVar("BodyT", bound=BaseModel)


@operations.add("GET", "/health", answer=Health)
def health() -> Health:
    """Whether the service answers."""
    return Health(vms=len(ask(messages.ListVms(), messages.Vms).vms))


@operations.add("GET", "/vms", answer=VmList)
def list_vms() -> VmList:
    """List the attached VMs."""
    vms = ask(messages.ListVms(), messages.Vms).vms
    return VmList(vms=[Vm.of(vm) for vm in sorted(vms, key=lambda vm: vm.attached_at)])


@operations.add("GET", "/vms/<vm_id>", answer=VmDetail, errors=(404, 503))
def show_vm(vm_id: str) -> VmDetail:
    """Show one VM with all its counters."""
    for vm in ask(messages.ListVms(), messages.Vms).vms:
        if vm.id == vm_id:
            return VmDetail.of(vm)
    raise RequestFailed.because("not-found", f"there is no VM {vm_id}; GET /v1/vms lists them")


@operations.add(
    "GET", "/vms/<vm_id>/capture", media=pcapng.MEDIA_TYPE, query={"snaplen": "0"}, errors=(400, 404, 409, 503)
)
def capture_vm(vm_id: str) -> Response:
    """Stream a VM's frames, or their first `snaplen` bytes, from now on until the reader hangs up."""
    asked = request.args.get("snaplen", "0")
    if not (asked.isascii() and asked.isdecimal() and len(asked) <= MAX_SNAPLEN_DIGITS):
        raise RequestFailed.because("bad-request", f"snaplen: expected a number of bytes, got {asked!r}")
    return hand_over(OpenCapture(vm_id, int(asked)))


@operations.add("GET", "/networks", answer=NetworkList)
def list_networks() -> NetworkList:
    """List the networks, with the MAC table of each."""
    networks = ask(messages.ListNetworks(), messages.Networks).networks
    return NetworkList(networks=[Network.of(network) for network in networks])


@operations.add("GET", "/forwards", answer=ForwardList)
def list_forwards() -> ForwardList:
    """List the forwarded ports and unix sockets."""
    forwards = ask(messages.ListForwards(), messages.Forwards).forwards
    return ForwardList(forwards=[Forward.of(forward) for forward in forwards])


@operations.add("POST", "/forwards", body=ForwardRequest, answer=Forward, status=201, errors=(400, 404, 409, 503))
def add_forward() -> Forward:
    """Forward a port or a unix socket of the host to a VM."""
    wanted = read_body(ForwardRequest)
    question = messages.Expose(wanted.local, wanted.remote, wanted.protocol, wanted.network, wanted.vm, wanted.source)
    return Forward.of(ask(question, messages.Forward))


@operations.add("DELETE", "/forwards", query={"local": None, "protocol": "tcp"}, errors=(400, 404, 409, 503))
def remove_forward() -> None:
    """Stop a forward; its live connections go on."""
    local = request.args.get("local")
    if not local:
        raise RequestFailed.because("bad-request", "the query parameter local is missing: which forward?")
    ask(messages.Unexpose(local, request.args.get("protocol", "tcp")), messages.Empty)


@operations.add("GET", "/leases", answer=LeaseList, query={"network": "default"}, errors=(404, 503))
def list_leases() -> LeaseList:
    """List a network's DHCP leases."""
    known = ask(messages.ListLeases(request.args.get("network", "default")), messages.Leases)
    return LeaseList(
        leases=[Lease.of(lease) for lease in known.leases],
        gateway_ip=known.gateway_ip,
        gateway_mac=known.gateway_mac,
    )


@operations.add("GET", "/zones", answer=ZoneList, query={"network": "default"}, errors=(404, 503))
def list_zones() -> ZoneList:
    """List a network's DNS zones."""
    return ask_zones(request.args.get("network", "default"))


@operations.add(
    "POST", "/zones", body=Zone, answer=ZoneList, query={"network": "default"}, status=201, errors=(400, 404, 503)
)
def add_zone() -> ZoneList:
    """Add a DNS zone, or put records before those of the zone of that name."""
    network = request.args.get("network", "default")
    ask(messages.AddZone(read_body(Zone).message(), network), messages.Empty)
    return ask_zones(network)


@operations.add("DELETE", "/zones", query={"name": None, "network": "default"}, errors=(400, 404, 503))
def remove_zone() -> None:
    """Take back what was added to a DNS zone; one that is configured stays as it is configured."""
    name = request.args.get("name")
    if name is None:
        raise RequestFailed.because("bad-request", "the query parameter name is missing: which zone?")
    ask(messages.RemoveZone(name, request.args.get("network", "default")), messages.Empty)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """This API's OpenAPI document."""
    return jsonify(operations.document())


def ask_zones(network: str) -> ZoneList:
    """A network's zones."""
    zones = ask(messages.ListZones(network), messages.Zones).zones
    return ZoneList(zones=[Zone.of(zone) for zone in zones])


def read_body(kind: type[BodyT]) -> BodyT:
    """The request's body as a model. Raises RequestFailed ``bad-request`` that names the key at fault."""
    try:
        return kind.model_validate_json(request.get_data())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise RequestFailed.because("bad-request", f"{where}: {first['msg']}" if where else first["msg"]) from error
