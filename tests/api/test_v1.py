"""``/v1`` answers JSON, errors included."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from proto import messages
from tests.api.conftest import VM, CannedSupervisor


def test_health_counts_the_vms(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    assert client.get("/v1/health").get_json() == {"status": "ok", "vms": 1}


def test_vms_are_listed_with_what_an_operator_wants_to_know(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    answer = client.get("/v1/vms")
    assert answer.content_type == "application/json"
    (vm,) = answer.get_json()["vms"]
    assert vm.pop("uptime") > 0
    assert vm == {
        "id": "vm-1",
        "mac": "5a:94:ef:e4:0c:ee",
        "ip": "192.168.127.2",
        "network": "default",
        "link": "qemu",
        "listener": "unix:///run/moorage/qemu.sock",
        "peer": "uid=1000 pid=4242",
        "worker_pid": 4711,
        "restarts": 1,
        "bytes_from_guest": 1000,
        "bytes_to_guest": 2000,
        "open_flows": 7,
        "memory": 7_000_000,
        "cpu_seconds": 1.5,
        "open_files": 12,
    }


def test_one_vm_is_shown_with_all_its_counters(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    assert client.get("/v1/vms/vm-1").get_json()["counters"] == VM.counters


def test_networks_are_listed_with_their_mac_tables(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    (network,) = client.get("/v1/networks").get_json()["networks"]
    assert network == {
        "name": "default",
        "subnet": "192.168.127.0/24",
        "gateway_ip": "192.168.127.1",
        "gateway_mac": "5a:94:ef:e4:0c:dd",
        "host_ip": "192.168.127.254",
        "mtu": 1500,
        "mode": "shared",
        "port_security": True,
        "macs": {"5a:94:ef:e4:0c:ee": "vm-1"},
    }


def test_a_forward_may_name_the_vm_it_is_for(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    body = {"local": ":80", "remote": "192.168.127.2:80", "network": "tenants", "vm": VM.mac}
    supervisor.answers[messages.Expose] = messages.Forward(":80", "192.168.127.2:80", network="tenants", vm=VM.mac)
    made = client.post("/v1/forwards", json=body)
    assert (made.status_code, made.get_json()["asked_vm"], made.get_json()["vm"]) == (201, VM.mac, None)
    assert supervisor.asked == [messages.Expose(":80", "192.168.127.2:80", "tcp", "tenants", VM.mac)]


def test_an_unknown_vm_is_404(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    answer = client.get("/v1/vms/vm-9")
    assert answer.status_code == 404
    assert answer.get_json() == {"code": "not-found", "message": "there is no VM vm-9; GET /v1/vms lists them"}


def test_a_forward_is_made_listed_and_removed(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    made = client.post("/v1/forwards", json={"local": ":6443", "remote": "192.168.127.2:6443"})
    assert made.status_code == 201
    assert made.get_json() == {
        "local": ":6443",
        "remote": "192.168.127.2:6443",
        "protocol": "tcp",
        "network": "default",
        "source": "keep",
        "bound": "0.0.0.0:6443",
        "vm": "vm-1",
        "asked_vm": None,
    }
    assert client.get("/v1/forwards").get_json() == {"forwards": [made.get_json()]}
    removed = client.delete("/v1/forwards?local=:6443")
    assert (removed.status_code, removed.data) == (204, b"")
    assert supervisor.asked == [
        messages.Expose(":6443", "192.168.127.2:6443"),
        messages.ListForwards(),
        messages.Unexpose(":6443"),
    ]


@pytest.mark.parametrize(
    ("code", "status"),
    [("bad-request", 400), ("not-found", 404), ("in-use", 409), ("unavailable", 503), ("internal", 500)],
)
def test_the_supervisors_refusal_becomes_a_status_and_keeps_its_sentence(
    supervisor: CannedSupervisor, client: FlaskClient, code: str, status: int
) -> None:
    supervisor.refuse(messages.Expose, code, "listen tcp :1: bind: permission denied")
    answer = client.post("/v1/forwards", json={"local": ":1", "remote": "192.168.127.2:1"})
    assert answer.status_code == status
    assert answer.get_json() == {"code": code, "message": "listen tcp :1: bind: permission denied"}


def test_a_taken_port_is_409_and_names_what_holds_it(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    supervisor.refuse(messages.Expose, "in-use", "listen tcp :6443: bind: address already in use", "held by nginx")
    answer = client.post("/v1/forwards", json={"local": ":6443", "remote": "192.168.127.9:1"})
    assert answer.status_code == 409
    assert answer.get_json() == {
        "code": "in-use",
        "message": "listen tcp :6443: bind: address already in use: held by nginx",
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"local":":1"}', "remote: Field required"),
        (b'{"local":":1","remote":"192.168.127.2:1","colour":"red"}', "colour: Extra inputs are not permitted"),
        (
            b'{"local":":1","remote":"192.168.127.2:1","protocol":"sctp"}',
            "protocol: Input should be 'tcp', 'udp' or 'unix'",
        ),
    ],
)
def test_a_bad_body_names_the_key_and_what_was_expected(client: FlaskClient, body: bytes, message: str) -> None:
    answer = client.post("/v1/forwards", data=body)
    assert answer.status_code == 400
    assert answer.get_json() == {"code": "bad-request", "message": message}


def test_a_body_that_is_no_json_is_400(client: FlaskClient) -> None:
    answer = client.post("/v1/forwards", data=b"junk")
    assert answer.status_code == 400
    assert answer.get_json()["message"].startswith("Invalid JSON: ")


def test_leases_are_listed(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    answer = client.get("/v1/leases?network=lab").get_json()
    assert answer["leases"] == [
        {
            "network": "default",
            "ip": "192.168.127.2",
            "mac": "5a:94:ef:e4:0c:ee",
            "hostname": "guest",
            "vm": "vm-1",
            "static": False,
            "expires_at": 1_900_000_000.0,
        }
    ]
    assert supervisor.asked == [messages.ListLeases("lab")]


def test_unknown_paths_and_methods_are_json_errors(client: FlaskClient) -> None:
    unknown, wrong = client.get("/v1/nope"), client.put("/v1/vms")
    assert (unknown.status_code, unknown.get_json()["code"]) == (404, "not-found")
    assert (wrong.status_code, wrong.get_json()["code"]) == (405, "method-not-allowed")
    assert "GET" in wrong.headers["Allow"]


def test_zones_are_listed_added_and_removed(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    zone = messages.Zone("lab.internal.", (messages.ZoneRecord("10.0.0.5", "db"),), authoritative=True)
    body = {
        "name": "lab.internal.",
        "records": [{"ip": "10.0.0.5", "name": "db", "regexp": ""}],
        "default_ip": "",
        "authoritative": True,
    }
    supervisor.answers |= {messages.ListZones: messages.Zones((zone,)), messages.RemoveZone: messages.Empty()}
    assert client.get("/v1/zones").get_json() == {"zones": [body]}
    added = client.post("/v1/zones?network=lab", json=body)
    assert (added.status_code, added.get_json()) == (201, {"zones": [body]})
    assert client.delete("/v1/zones?name=&network=lab").status_code == 204
    assert supervisor.asked[1:] == [
        messages.AddZone(zone, "lab"),
        messages.ListZones("lab"),
        messages.RemoveZone("", "lab"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [("DELETE", "/v1/zones", "parameter name is missing"), ("POST", "/v1/zones", "name: Field required")],
)
def test_a_zone_must_be_named(client: FlaskClient, method: str, path: str, message: str) -> None:
    answer = client.open(path, method=method, json={})
    assert answer.status_code == 400
    assert message in answer.get_json()["message"]
