"""gvproxy's ``/tunnel``: its errors, and its bytes on the wire (containers/gvisor-tap-vsock 3405fe5c)."""

from __future__ import annotations

import socket

import pytest

from tests.guests.service import Service

pytestmark = pytest.mark.guest


def ask(service: Service, query: str, method: str = "GET") -> tuple[int, str]:
    return service.request(method, f"/tunnel{query}")


def test_the_address_is_mandatory(service: Service) -> None:
    """GET /tunnel: 500 `ip is mandatory`"""
    for query in ("", "?ip=", "?port=22"):
        assert ask(service, query) == (500, "ip is mandatory\n")


@pytest.mark.parametrize(
    ("port", "text"),
    [
        ("", 'strconv.ParseUint: parsing "": invalid syntax'),
        ("ssh", 'strconv.ParseUint: parsing "ssh": invalid syntax'),
        ("-1", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        ("65536", 'strconv.ParseUint: parsing "65536": value out of range'),
    ],
)
def test_the_port_is_read_as_go_does(service: Service, port: str, text: str) -> None:
    """without port: 500 `strconv.ParseUint: parsing "": invalid syntax`"""
    assert ask(service, f"?ip=192.168.127.2&port={port}") == (500, f"{text}\n")
    assert ask(service, "?ip=192.168.127.2") == (500, 'strconv.ParseUint: parsing "": invalid syntax\n')


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("ip", ["192.168.127.99", "192.168.127.1"], ids=["nobody", "gateway"])
def test_a_tunnel_begins_with_ok_before_the_guest_is_called(service: Service, method: str, ip: str) -> None:
    """any method; raw `OK` (2 bytes, no HTTP status), then bytes; dial (10 s) comes after OK, failure = close. Cannot
    reach the gateway's own services"""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(service.api_path))
        client.sendall(f"{method} /tunnel?ip={ip}&port=53 HTTP/1.1\r\nHost: unix\r\n\r\n".encode())
        assert b"".join(iter(lambda: client.recv(100), b"")) == b"OK"
