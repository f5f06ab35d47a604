"""gvproxy's HTTP API (containers/gvisor-tap-vsock 3405fe5c): the routes podman, CRC and Lima call.

Paths, status codes, bodies and error texts are gvproxy's, so that its clients need no change: they match on texts such
as ``proxy already running``. What is wrong with a request's form is said here; what is wrong with a forward or a zone
is said by the supervisor, in gvproxy's sentences too. No route looks at the method, but for the three that say ``post
only``. Everything here is about the network ``default``. ``/connect`` is in `api.connect`.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from api import gvproxy_stats
from api.handover import hand_over
from api.mux import ANY_METHOD
from api.supervisor_client import ask
from proto import forwarder, golang
from proto.errors import RequestFailed
from proto.golang import GoError
from proto.messages import (
    AddZone,
    Empty,
    Expose,
    Forward,
    Forwards,
    Leases,
    ListForwards,
    ListLeases,
    ListNetworks,
    ListVms,
    ListZones,
    Networks,
    OpenTunnel,
    Stats,
    SumStats,
    Unexpose,
    Vms,
    Zone,
    ZoneRecord,
    Zones,
)

blueprint = Blueprint("gvproxy", __name__)

ZONE_FIELDS: dict[str, type] = {"Name": str, "Records": list, "DefaultIP": str, "Authoritative": bool}
"""The last is ours; gvproxy ignores it."""
RECORD_FIELDS = {"Name": str, "IP": str, "Regexp": str}


def text_error(status: int, message: str) -> Response:
    """Go's `http.Error`."""
    return Response(
        f"{message}\n", status, {"X-Content-Type-Options": "nosniff"}, content_type="text/plain; charset=utf-8"
    )


def json_answer(value: Any) -> Response:
    """A value as JSON."""
    return go_json(golang.encode_value(value))


def go_json(text: str) -> Response:
    """JSON under the content type that Go's sniffing gives it."""
    return Response(text, content_type="text/plain; charset=utf-8")


def empty_answer() -> Response:
    """200 without a body or a type."""
    answer = Response(b"")
    del answer.headers["Content-Type"]
    return answer


@blueprint.errorhandler(GoError)
def on_bad_request(error: GoError) -> Response:
    """A body that Go would not have decoded."""
    return text_error(400, str(error))


# --- forwards ------------------------------------------------------------------------------------------------------


@blueprint.route("/services/forwarder/all", methods=ANY_METHOD)
def all_forwards() -> Response:
    """Every forward, sorted by local address, then protocol."""
    forwards = ask(ListForwards(), Forwards).forwards
    return go_json(forwarder.list_body(forward for forward in forwards if forward.network == "default"))


@blueprint.route("/services/forwarder/expose", methods=ANY_METHOD)
def expose() -> Response:
    """Forward a port or a unix socket of the host to a VM."""
    local, remote, protocol = forwarder.read_expose(request.method, request.get_data(), request.remote_addr or "")
    try:
        ask(Expose(local, remote, protocol), Forward)
    except RequestFailed as error:
        if error.failure.code == "unavailable":
            raise
        return text_error(500, error.failure.message)
    return empty_answer()


@blueprint.route("/services/forwarder/unexpose", methods=ANY_METHOD)
def unexpose() -> Response:
    """Stop a forward; its live connections go on."""
    local, protocol = forwarder.read_unexpose(request.method, request.get_data())
    try:
        ask(Unexpose(local, protocol), Empty)
    except RequestFailed as error:
        if error.failure.code == "unavailable":
            raise
        return text_error(500, "proxy not found" if error.failure.code == "not-found" else error.failure.message)
    return empty_answer()


@blueprint.route("/tunnel", methods=ANY_METHOD)
def tunnel() -> Response:
    """The connection becomes one to a TCP port of a VM: the two bytes ``OK`` and no HTTP, then what the guest says."""
    ip = request.args.get("ip", "")
    if not ip:
        return text_error(500, "ip is mandatory")
    try:
        port = golang.parse_uint16(request.args.get("port", ""))
    except GoError as error:
        return text_error(500, str(error))
    return hand_over(OpenTunnel(ip, port))


# --- what the network knows ------------------------------------------------------------------------------------------


@blueprint.route("/leases", methods=ANY_METHOD)
@blueprint.route("/services/dhcp/leases", methods=ANY_METHOD)
def leases() -> Response:
    """Address to MAC, the gateway's own included."""
    known = ask(ListLeases(), Leases)
    table = {lease.ip: lease.mac for lease in known.leases} | {known.gateway_ip: known.gateway_mac}
    return json_answer(dict(sorted(table.items())))


@blueprint.route("/cam", methods=ANY_METHOD)
def cam() -> Response:
    """MAC to connection number, of all networks: VMs are numbered in the order they were attached."""
    vms = sorted(ask(ListVms(), Vms).vms, key=lambda vm: vm.attached_at)
    numbers = {vm.id: number for number, vm in enumerate(vms)}
    known = [entry for network in ask(ListNetworks(), Networks).networks for entry in network.macs.items()]
    return json_answer({mac: numbers[vm_id] for mac, vm_id in sorted(known) if vm_id in numbers})


@blueprint.route("/stats", methods=ANY_METHOD)
def stats() -> Response:
    """gvproxy's counters, of all VMs together, those that have left included."""
    answer = json_answer(gvproxy_stats.tree(ask(SumStats(), Stats).counters))
    answer.response = iter(answer.iter_encoded())  # of unknown length, so chunked, as Go sends what is over 2 KiB
    del answer.headers["Content-Length"]
    return answer


# --- DNS -----------------------------------------------------------------------------------------------------------


@blueprint.route("/services/dns/all", methods=ANY_METHOD)
def zones() -> Response:
    """The zones that the gateway answers itself; ``null`` when there are none."""
    return json_answer([zone_body(zone) for zone in ask(ListZones(), Zones).zones] or None)


@blueprint.route("/services/dns/add", methods=ANY_METHOD)
def add_zone() -> Response:
    """Add a zone, or put records before those of the zone of that name."""
    wanted = forwarder.read_post(request.method, request.get_data(), "Zone", ZONE_FIELDS)
    records = tuple(zone_record(record) for record in wanted.get("Records", ()))
    ask(AddZone(Zone(wanted.get("Name", ""), records, wanted.get("DefaultIP", ""), wanted.get("Authoritative"))), Empty)
    return empty_answer()


def zone_body(zone: Zone) -> dict[str, Any]:
    """A zone in gvproxy's shape; our own key only where it was given."""
    records = [
        {"Name": record.name, "IP": record.ip} | ({"Regexp": record.regexp} if record.regexp else {})
        for record in zone.records
    ]
    said = {} if zone.authoritative is None else {"Authoritative": zone.authoritative}
    return {"Name": zone.name, "Records": records or None, "DefaultIP": zone.default_ip} | said


def zone_record(value: Any) -> ZoneRecord:
    """A record out of a request's body. Raises GoError."""
    fields = golang.read_struct(value, "Record", RECORD_FIELDS)
    return ZoneRecord(fields.get("IP", ""), fields.get("Name", ""), fields.get("Regexp", ""))
