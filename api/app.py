"""The Flask application: its blueprints, and what every answer has in common.

Errors under ``/v1`` are JSON (`api.models.Error`), everywhere else text, as gvproxy's clients read it.
"""

from __future__ import annotations

import logging
import os
from urllib.parse import urlsplit

from flask import Flask, Response, request
from werkzeug.exceptions import Forbidden, HTTPException

from api import connect, gvproxy, handover, metrics, mux, v1
from api.models import Error, json_response
from api.supervisor_client import SupervisorClient
from proto.errors import CodecError, MoorageError, RequestFailed, RequestTimeout

log = logging.getLogger(__name__)

MAX_BODY_SIZE = 256 << 10
"""Bytes of a request's body; the largest sensible one is a DNS zone."""

STATUS_OF_FAILURE = {
    "bad-request": 400,
    "not-found": 404,
    "conflict": 409,
    "in-use": 409,
    "unavailable": 503,
    "internal": 500,
}
CODE_OF_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 403: "forbidden"}


def create_app(runtime_dir: str | None = None) -> Flask:
    """The application; `runtime_dir` holds the supervisor's sockets (default: ``$MOORAGE_RUNTIME_DIR``)."""
    app = Flask("api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_SIZE
    runtime = runtime_dir or os.environ["MOORAGE_RUNTIME_DIR"]
    SupervisorClient(f"ipc://{runtime}/control.sock").attach(app)
    handover.set_up(app, f"{runtime}/handover.sock")
    app.url_rule_class = mux.AnyMethodRule
    app.url_map.merge_slashes = False  # the mux redirects, and differently
    app.before_request(mux.redirect_unclean_path)
    app.before_request(refuse_other_sites)
    app.after_request(mux.say_status)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(MoorageError, on_moorage_error)
    app.register_blueprint(connect.blueprint)
    app.register_blueprint(gvproxy.blueprint)
    app.register_blueprint(v1.blueprint)
    app.register_blueprint(metrics.blueprint)
    return app


def refuse_other_sites() -> None:
    """Keep web pages of other sites, open in a browser on this host, from forwarding ports behind the user's back."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise Forbidden("requests of other sites' pages are refused")


def on_http_error(error: HTTPException) -> Response:
    """Flask's own errors: unknown path, wrong method, body too large."""
    status = error.code or 500
    if status == 404 and not request.path.startswith("/v1/"):
        return error_response(404, "not-found", "404 page not found")
    code = CODE_OF_STATUS.get(status, "bad-request" if status < 500 else "internal")
    text = f"there is nothing at {request.path}" if status == 404 else error.description or error.name
    answer = error_response(status, code, text)
    if "Allow" in (headers := dict(error.get_headers())):
        answer.headers["Allow"] = headers["Allow"]
    return answer


def on_moorage_error(error: MoorageError) -> Response:
    """Errors of the conversation with the supervisor."""
    if isinstance(error, RequestFailed):
        failure = error.failure
        told = [failure.message, failure.detail] if request.path.startswith("/v1/") else [failure.message]
        return error_response(STATUS_OF_FAILURE[failure.code], failure.code, ": ".join(filter(None, told)))
    if isinstance(error, RequestTimeout):
        log.warning("%s %s: the supervisor does not answer: %s", request.method, request.path, error)
        return error_response(503, "unavailable", "the Moorage supervisor does not answer; try again in a moment")
    if isinstance(error, CodecError):
        return error_response(400, "bad-request", f"the request does not fit a message: {error}")
    log.error("%s %s: %s", request.method, request.path, error)
    return error_response(500, "internal", str(error))


def error_response(status: int, code: str, message: str) -> Response:
    """JSON under ``/v1``, Go's `http.Error` elsewhere."""
    if request.path.startswith("/v1/"):
        return json_response(Error(code=code, message=message), status)
    return gvproxy.text_error(status, message)
