"""``moorage capture``: a VM's frames from the service's API to a file or a pipe."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from io import FileIO
from typing import Any
from urllib.parse import quote, urlsplit

DEFAULT_API = "http://127.0.0.1:7878"
TIMEOUT = 10.0
"""s for the service to answer; then a capture may be silent for as long as its VM is."""
PIECE = 1 << 18


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Refused(Exception):
    """The service does not do it; its message."""


def run(vm: str, path: str | None, snaplen: int, api: str) -> int:
    """Capture until the VM is gone, or Ctrl-C, or nobody reads any more; the exit status."""
    if path is None and sys.stdout.isatty():
        print("moorage capture: pcapng is nothing for a terminal: name a file with -w, or pipe it", file=sys.stderr)
        return 2
    try:
        answer = _open(_connect(api), vm, snaplen)
        target = sys.stdout.fileno() if path is None else path
        with open(target, "wb", buffering=0, closefd=path is not None) as out:
            _copy(answer, out)
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    except (OSError, http.client.HTTPException, _Refused, ValueError) as error:
        print(f"moorage capture: {error}", file=sys.stderr)
        return 1
    return 0


def _connect(api: str) -> http.client.HTTPConnection:
    """A connection to the API. Raises ValueError on a URL that is none."""
    url = urlsplit(api)
    if url.scheme == "unix" and url.path:
        return _UnixConnection(url.path)
    if url.scheme == "http" and url.hostname:
        return http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT)
    raise ValueError(f"{api}: expected http://HOST:PORT or unix:///PATH")


def _open(connection: http.client.HTTPConnection, vm: str, snaplen: int) -> http.client.HTTPResponse:
    """The growing answer. Raises _Refused."""
    vms = json.loads(_get(connection, "/v1/vms").read())["vms"]
    found = [known["id"] for known in vms if vm.lower() in (known["id"], known["mac"], known["ip"])]
    if len(found) > 1:
        raise _Refused(f"{vm} may be {' or '.join(found)}: name one of them")
    connection.close()
    connection.connect()
    sock = connection.sock
    answer = _get(connection, f"/v1/vms/{quote(found[0] if found else vm, safe='')}/capture?snaplen={snaplen}")
    sock.settimeout(None)
    return answer


def _get(connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status != 200:
        raise _Refused(_message(answer.read()))
    return answer


def _message(body: bytes) -> str:
    try:
        said: Any = json.loads(body)
        return str(said["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


def _copy(answer: http.client.HTTPResponse, out: FileIO) -> None:
    """Each piece at once as it comes."""
    while piece := answer.read1(PIECE):
        view = memoryview(piece)
        while view:
            view = view[out.write(view) :]
