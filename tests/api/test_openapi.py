"""The OpenAPI document tells the truth about ``/v1``."""

from __future__ import annotations

import json
import re

from flask.testing import FlaskClient


def test_every_route_is_described_and_every_reference_resolves(client: FlaskClient) -> None:
    document = client.get("/v1/openapi.json").get_json()
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    served = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method)
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/v1/")
    }
    assert described == served - {("/v1/openapi.json", "GET")}
    schemas = document["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert references
    assert set(references) <= set(schemas)


def test_operations_carry_their_parameters_bodies_and_errors(client: FlaskClient) -> None:
    paths = client.get("/v1/openapi.json").get_json()["paths"]
    assert paths["/v1/vms/{vm_id}"]["get"]["parameters"][0]["in"] == "path"
    assert paths["/v1/forwards"]["delete"]["parameters"][0] == {
        "name": "local",
        "in": "query",
        "required": True,
        "schema": {"type": "string"},
    }
    create = paths["/v1/forwards"]["post"]
    assert create["summary"] == "Forward a port or a unix socket of the host to a VM"
    assert create["responses"].keys() == {"201", "400", "404", "409", "503"}
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ForwardRequest")
