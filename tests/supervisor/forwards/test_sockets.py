"""The host's end of a forward."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from supervisor.forwards.sockets import bind

real_socket = socket.socket


def bound(host: str, port: int = 0, dual_stack: bool = False) -> tuple[str, int]:
    """Where a socket that was asked for is bound."""
    with asyncio.run(bind("tcp", host, port, dual_stack)) as sock:
        name = sock.getsockname()
        return name[0], name[1]


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_where_there_is_no_ipv6_every_address_is_every_one_of_ipv4(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def without_ipv6(family: int, *more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real_socket(family, *more)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    assert bound(host, dual_stack=True)[0] == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "dual_stack", "address"),
    [
        ("", False, "::"),
        ("0.0.0.0", False, "0.0.0.0"),
        ("0.0.0.0", True, "::"),
        ("::", True, "::"),
        ("127.0.0.1", True, "127.0.0.1"),
        ("::1", True, "::1"),
    ],
)
def test_an_unspecified_address_is_every_address_where_that_is_asked_for(
    host: str, dual_stack: bool, address: str
) -> None:
    assert bound(host, dual_stack=dual_stack)[0] == address
