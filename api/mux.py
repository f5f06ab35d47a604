"""Paths as Go's `http.ServeMux` takes them, which gvproxy's clients speak to: what is not clean is sent to what is.

``//cam`` and ``/x/../cam`` are redirected to ``/cam``, and the name of a folder of routes to the same with a slash. By
307, as Go does since 1.27, so that a POST stays one; older ones sent 301.
"""

from __future__ import annotations

import posixpath
from html import escape
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flask import Response, request
from werkzeug.routing import Rule

STATUS = 307
ANY_METHOD = ("*", "OPTIONS")
"""Of a route that does not look at the method. OPTIONS is among them lest Flask answers it itself."""
FOLDERS = frozenset({"/services", "/services/dhcp", "/services/dns", "/services/forwarder"})


class AnyMethodRule(Rule):
    """A route, which takes every method where it says `ANY_METHOD`: `FOO`, too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.methods is not None and "*" in self.methods:
            self.methods = None


def redirect_unclean_path() -> Response | None:
    """The redirect that a request's path calls for, where it does."""
    asked = request.environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")  # `request.path` has no `//`
    path = clean(asked)
    if path in FOLDERS:
        path += "/"
    if path == asked or request.method == "CONNECT":
        return None
    location = quote(path) + (f"?{request.query_string.decode('latin-1')}" if request.query_string else "")
    answer = Response(status=STATUS, headers={"Location": location})
    del answer.headers["Content-Type"]
    if request.method in ("GET", "HEAD"):
        answer.content_type = "text/html; charset=utf-8"
        answer.set_data(f'<a href="{escape(location)}">Temporary Redirect</a>.\n\n')
    return answer


def say_status(answer: Response) -> Response:
    """The status line's words as Go and RFC 9110 have them; werkzeug's are in capitals."""
    answer.status = f"{answer.status_code} {HTTPStatus(answer.status_code).phrase}"
    return answer


def clean(path: str) -> str:
    """Go's `path.Clean`, but for a slash at the end, which stays."""
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    return f"{cleaned}/" if path.endswith("/") and cleaned != "/" else cleaned
