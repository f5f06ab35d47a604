"""gvproxy's routes answer as the transcript of a real gvproxy does."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from proto import messages
from tests.api.conftest import CannedSupervisor

TEXT = "text/plain; charset=utf-8"
EXPOSE = "/services/forwarder/expose"
UNEXPOSE = "/services/forwarder/unexpose"
ADD_ZONE = "/services/dns/add"


def seen(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.get_data(as_text=True)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/services/forwarder/all", '[{"local":":6443","remote":"192.168.127.2:6443","protocol":"tcp"}]\n'),
        ("/leases", '{"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.2":"5a:94:ef:e4:0c:ee"}\n'),
        ("/services/dhcp/leases", '{"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.2":"5a:94:ef:e4:0c:ee"}\n'),
        ("/cam", '{"5a:94:ef:e4:0c:ee":0}\n'),
        ("/services/dns/all", "null\n"),
    ],
)
def test_reading_routes_answer_compact_json_as_text_to_any_method(
    supervisor: CannedSupervisor, client: FlaskClient, method: str, path: str, body: str
) -> None:
    answer = client.open(path, method=method)
    assert seen(answer) == (200, body)
    assert answer.content_type == TEXT


def test_no_forwards_is_an_empty_list(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    supervisor.answers[messages.ListForwards] = messages.Forwards(())
    assert seen(client.get("/services/forwarder/all")) == (200, "[]\n")


def test_forwards_are_sorted_by_local_address_then_protocol(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    forwards = (("b", "tcp"), ("a", "udp"), ("a", "tcp"))
    supervisor.answers[messages.ListForwards] = messages.Forwards(
        tuple(messages.Forward(local, "r", protocol) for local, protocol in forwards)  # type: ignore[arg-type]
    )
    listed = client.get("/services/forwarder/all").get_json(force=True)
    assert [(forward["local"], forward["protocol"]) for forward in listed] == sorted(forwards)


def test_expose_answers_an_empty_200(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    answer = client.post(EXPOSE, data=b'{"local":":6443","remote":"192.168.127.2:6443"}')
    assert seen(answer) == (200, "")
    assert answer.content_length == 0
    assert "Content-Type" not in answer.headers
    assert supervisor.asked == [messages.Expose(":6443", "192.168.127.2:6443", "tcp")]


def test_expose_takes_keys_in_any_case_and_ignores_the_unknown_and_what_trails(
    supervisor: CannedSupervisor, client: FlaskClient
) -> None:
    body = b' {"LOCAL":":1","Remote":"192.168.127.2:1","protocol":"udp","color":"red"} and more'
    assert seen(client.post(EXPOSE, data=body)) == (200, "")
    assert supervisor.asked == [messages.Expose(":1", "192.168.127.2:1", "udp")]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b"  ", "EOF"),
        (b"junk", "invalid character 'j' looking for beginning of value"),
        (b'{"local":', "unexpected EOF"),
        (b'{"local":":1"', "unexpected EOF"),
        (b"[]", "json: cannot unmarshal array into Go value of type types.ExposeRequest"),
        (b'{"local":1}', "json: cannot unmarshal number into Go struct field ExposeRequest.local of type string"),
        (b"[" * 100_000, "exceeded max depth"),
        (b"{}", "missing port in address"),
        (b'{"remote":"192.168.127.2"}', "address 192.168.127.2: missing port in address"),
        (b'{"remote":"a:b:c"}', "address a:b:c: too many colons in address"),
    ],
)
def test_expose_refuses_with_gvproxys_words(client: FlaskClient, body: bytes, text: str) -> None:
    answer = client.post(EXPOSE, data=body)
    assert seen(answer) == (400, text + "\n")
    assert answer.content_type == TEXT
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("conflict", "proxy already running for tcp on :6443"),
        ("in-use", "listen tcp :6443: bind: address already in use"),
        ("bad-request", "invalid remote addr"),
    ],
)
def test_expose_passes_the_supervisors_refusal_on(
    supervisor: CannedSupervisor, client: FlaskClient, code: str, text: str
) -> None:
    supervisor.refuse(messages.Expose, code, text)
    answer = client.post(EXPOSE, data=b'{"local":":6443","remote":"192.168.127.2:6443"}')
    assert seen(answer) == (500, text + "\n")


def test_an_unknown_protocol_is_the_supervisors_to_refuse(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    supervisor.refuse(messages.Expose, "bad-request", "unknown protocol sctp")
    answer = client.post(EXPOSE, data=b'{"remote":"1.2.3.4:1","protocol":"sctp"}')
    assert seen(answer) == (500, "unknown protocol sctp\n")


def test_expose_without_a_remote_host_means_the_caller(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    body = b'{"local":":1","remote":":80"}'
    assert client.post(EXPOSE, data=body, environ_base={"REMOTE_ADDR": "192.168.127.2"}).status_code == 200
    assert supervisor.asked == [messages.Expose(":1", "192.168.127.2:80", "tcp")]
    on_unix_socket = client.post(EXPOSE, data=body, environ_base={"REMOTE_ADDR": ""})
    assert seen(on_unix_socket) == (400, "address @: missing port in address\n")


@pytest.mark.parametrize("path", [EXPOSE, UNEXPOSE, ADD_ZONE])
def test_changing_routes_say_post_only(client: FlaskClient, path: str) -> None:
    assert seen(client.get(path)) == (400, "post only\n")


def test_unexpose_stops_a_forward_once(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    assert seen(client.post(UNEXPOSE, data=b'{"local":":6443"}')) == (200, "")
    assert supervisor.asked == [messages.Unexpose(":6443", "tcp")]
    supervisor.refuse(messages.Unexpose, "not-found", "there is no forward of tcp :6443")
    assert seen(client.post(UNEXPOSE, data=b'{"local":":6443"}')) == (500, "proxy not found\n")


def test_zones_are_listed_with_regexp_only_where_there_is_one(
    supervisor: CannedSupervisor, client: FlaskClient
) -> None:
    records = (messages.ZoneRecord("192.168.127.1", "gateway"), messages.ZoneRecord("1.2.3.4", regexp="^a.*"))
    supervisor.answers[messages.ListZones] = messages.Zones(
        (messages.Zone("test.internal.", records, "9.9.9.9"), messages.Zone("empty.internal."))
    )
    assert seen(client.get("/services/dns/all")) == (
        200,
        '[{"Name":"test.internal.","Records":[{"Name":"gateway","IP":"192.168.127.1"},'
        '{"Name":"","IP":"1.2.3.4","Regexp":"^a.*"}],"DefaultIP":"9.9.9.9"},'
        '{"Name":"empty.internal.","Records":null,"DefaultIP":""}]\n',
    )


def test_a_zone_is_added_with_its_records(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    body = {
        "Name": "test.internal.",
        "Records": [{"Name": "gateway", "IP": "192.168.127.1"}, {"Regexp": "^a.*", "IP": "1.2.3.4"}],
        "DefaultIP": "9.9.9.9",
    }
    assert seen(client.post(ADD_ZONE, json=body)) == (200, "")
    records = (messages.ZoneRecord("192.168.127.1", "gateway"), messages.ZoneRecord("1.2.3.4", regexp="^a.*"))
    assert supervisor.asked == [messages.AddZone(messages.Zone("test.internal.", records, "9.9.9.9"))]


def test_our_own_key_of_a_zone_is_taken_and_shown_only_where_it_was_given(
    supervisor: CannedSupervisor, client: FlaskClient
) -> None:
    assert seen(client.post(ADD_ZONE, data=b'{"Name":"a.","Authoritative":true}')) == (200, "")
    zone = messages.Zone("a.", authoritative=True)
    assert supervisor.asked == [messages.AddZone(zone)]
    supervisor.answers[messages.ListZones] = messages.Zones((zone,))
    listed = '[{"Name":"a.","Records":null,"DefaultIP":"","Authoritative":true}]\n'
    assert seen(client.get("/services/dns/all")) == (200, listed)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"Name":"a.","Records":[7]}', "json: cannot unmarshal number into Go value of type types.Record"),
        (
            b'{"Name":"a.","Records":{}}',
            "json: cannot unmarshal object into Go struct field Zone.Records of type []types.Record",
        ),
    ],
)
def test_a_malformed_zone_is_refused(client: FlaskClient, body: bytes, text: str) -> None:
    assert seen(client.post(ADD_ZONE, data=body)) == (400, text + "\n")


def test_the_supervisors_refusal_of_a_zone_is_400(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    supervisor.refuse(messages.AddZone, "bad-request", "invalid IP address: x")
    assert seen(client.post(ADD_ZONE, data=b'{"Name":"a.","DefaultIP":"x"}')) == (400, "invalid IP address: x\n")


def test_a_lone_surrogate_does_not_break_the_way_to_the_supervisor(
    supervisor: CannedSupervisor, client: FlaskClient
) -> None:
    assert client.post(UNEXPOSE, data=rb'{"local":"\ud800"}').status_code == 200
    assert supervisor.asked == [messages.Unexpose("?", "tcp")]


def test_unknown_paths_are_404_in_gos_words(client: FlaskClient) -> None:
    answer = client.get("/nope")
    assert seen(answer) == (404, "404 page not found\n")
    assert answer.content_type == TEXT
