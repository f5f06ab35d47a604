"""The bodies of gvproxy's ``/services/forwarder`` routes, which the API serves on the host and a worker to its guest.

What is wrong with a body's form is a `GoError`, which is answered with status 400 and its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proto import golang
from proto.golang import GoError
from proto.messages import Forward

ALL, EXPOSE, UNEXPOSE = (f"/services/forwarder/{name}" for name in ("all", "expose", "unexpose"))
EXPOSE_FIELDS = {"local": str, "remote": str, "protocol": str}
UNEXPOSE_FIELDS = {"local": str, "protocol": str}


def list_body(forwards: Iterable[Forward]) -> str:
    """Forwards, sorted by local address, then protocol."""
    found = sorted(forwards, key=lambda forward: (forward.local, forward.protocol))
    return golang.encode_value(
        [{"local": forward.local, "remote": forward.remote, "protocol": forward.protocol} for forward in found]
    )


def read_expose(method: str, body: bytes, caller: str) -> tuple[str, str, str]:
    """Local end, remote end, protocol; a remote end without a host is at `caller`, empty where it has no address."""
    wanted = read_post(method, body, "ExposeRequest", EXPOSE_FIELDS)
    local, remote, protocol = (wanted.get(name, "") for name in ("local", "remote", "protocol"))
    if (protocol or "tcp") in ("tcp", "udp"):
        host, port = golang.split_host_port(remote)
        if not host and not caller:
            raise GoError("address @: missing port in address")
        remote = remote if host else f"{caller}:{port}"
    return local, remote, protocol or "tcp"


def read_unexpose(method: str, body: bytes) -> tuple[str, str]:
    """Local end and protocol."""
    wanted = read_post(method, body, "UnexposeRequest", UNEXPOSE_FIELDS)
    return wanted.get("local", ""), wanted.get("protocol") or "tcp"


def read_post(method: str, body: bytes, struct: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """The body of a POST as the fields of a Go struct."""
    if method != "POST":
        raise GoError("post only")
    return golang.read_struct(golang.decode_value(body), struct, fields)
