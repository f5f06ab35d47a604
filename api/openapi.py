"""``/v1`` describes itself: every route is declared once, with its bodies, and the OpenAPI document comes from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.models import Error, json_response

REASONS = {
    400: "The request is malformed",
    404: "There is no such thing",
    409: "Already taken; the message names the holder",
    503: "The supervisor does not answer",
}

Handler = Callable[..., BaseModel | Response | None]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """As Flask spells it, under the blueprint's prefix: ``/vms/<vm_id>``"""
    summary: str
    answer: type[BaseModel] | None
    """None: 204, no body, but for one that has a `media`."""
    media: str
    """The type of an answer that is no JSON; the handler makes that response itself."""
    status: int
    body: type[BaseModel] | None
    query: dict[str, str | None]
    """Query parameters with their defaults; None: required."""
    errors: tuple[int, ...]


class Operations:
    """Registers routes on a blueprint and remembers what they are."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._operations: list[Operation] = []

    def add(
        self,
        method: str,
        path: str,
        *,
        answer: type[BaseModel] | None = None,
        media: str = "",
        status: int = 200,
        body: type[BaseModel] | None = None,
        query: dict[str, str | None] | None = None,
        errors: tuple[int, ...] = (503,),
    ) -> Callable[[Handler], Handler]:
        """A decorator: the handler's docstring is the summary, its return value the body of the answer."""

        def register(handler: Handler) -> Handler:
            def respond(**arguments: str) -> Response:
                result = handler(**arguments)
                if isinstance(result, Response):
                    return result
                return Response(status=204) if result is None else json_response(result, status)

            summary = (handler.__doc__ or "").partition("\n")[0].rstrip(".")
            self._operations.append(
                Operation(
                    method, path, summary, answer, media, status if answer or media else 204, body, query or {}, errors
                )
            )
            self._blueprint.add_url_rule(path, f"{method} {path}", respond, methods=[method])
            return handler

        return register

    def document(self) -> dict[str, Any]:
        """The OpenAPI 3.1 document of all operations."""
        kinds = {kind for operation in self._operations for kind in (operation.answer, operation.body) if kind}
        _, definitions = models_json_schema(
            [(kind, "validation") for kind in sorted(kinds | {Error}, key=lambda kind: kind.__name__)],
            ref_template="#/components/schemas/{model}",
        )
        paths: dict[str, dict[str, Any]] = {}
        for operation in self._operations:
            path = (self._blueprint.url_prefix or "") + operation.path.replace("<", "{").replace(">", "}")
            paths.setdefault(path, {})[operation.method.lower()] = _described(operation)
        return {
            "openapi": "3.1.0",
            "info": {"title": "Moorage", "version": version("moorage")},
            "paths": paths,
            "components": {"schemas": definitions["$defs"]},
        }


def _described(operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in operation.path.split("/")
        if part.startswith("<")
    ] + [
        {
            "name": name,
            "in": "query",
            "required": default is None,
            "schema": {"type": "string"} | ({} if default is None else {"default": default}),
        }
        for name, default in operation.query.items()
    ]
    success: dict[str, Any] = {"description": "Done"}
    if operation.answer:
        success = {"description": "The answer", "content": _content(operation.answer)}
    elif operation.media:
        success = {"description": "The answer", "content": {operation.media: {}}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {str(operation.status): success}
        | {str(status): {"description": REASONS[status], "content": _content(Error)} for status in operation.errors},
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _content(kind: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
