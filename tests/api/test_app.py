"""What all routes have in common: limits, strangers, and a supervisor that is not there."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from api import supervisor_client
from api.app import MAX_BODY_SIZE
from proto import messages
from tests.api.conftest import CannedSupervisor


@pytest.mark.parametrize("path", ["/v1/forwards", "/services/forwarder/expose"])
def test_a_body_over_the_limit_is_413(client: FlaskClient, path: str) -> None:
    assert client.post(path, data=b" " * (MAX_BODY_SIZE + 1)).status_code == 413


def test_a_silent_supervisor_is_503_with_a_sentence(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_client, "TIMEOUT", 0.1)
    answer = client.get("/v1/vms")
    sentence = "the Moorage supervisor does not answer; try again in a moment"
    assert answer.status_code == 503
    assert answer.get_json() == {"code": "unavailable", "message": sentence}
    text = client.get("/stats")
    assert (text.status_code, text.get_data(as_text=True)) == (503, sentence + "\n")


def test_an_answer_of_the_wrong_class_is_500(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    supervisor.answers[messages.ListVms] = messages.Empty()
    answer = client.get("/v1/vms")
    assert answer.status_code == 500
    assert answer.get_json()["message"] == "ListVms was answered by Empty"


def test_pages_of_other_sites_may_not_use_the_api(supervisor: CannedSupervisor, client: FlaskClient) -> None:
    body = b'{"local":":1","remote":"192.168.127.2:1"}'
    own = {"Host": "127.0.0.1:7878", "Origin": "http://127.0.0.1:7878"}
    stranger = own | {"Origin": "http://evil.example"}
    assert client.post("/services/forwarder/expose", data=body, headers=own).status_code == 200
    assert client.post("/services/forwarder/expose", data=body, headers=stranger).status_code == 403
    assert client.get("/v1/vms", headers=stranger).get_json()["code"] == "forbidden"
