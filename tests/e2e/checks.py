"""What a guest of any kind must be able to do."""

from __future__ import annotations

import re

from tests.guests.guest import Guest, GuestLease
from tests.guests.servers import FileServer
from tests.guests.service import Service

GATEWAY = "192.168.127.1"
HOST = "192.168.127.254"
CURL_COULD_NOT_CONNECT = 7


def check_lease(lease: GuestLease) -> None:
    """The service's defaults, told by DHCP."""
    assert re.fullmatch(r"192\.168\.127\.\d+", lease.ip)
    assert lease.ip not in (GATEWAY, HOST)
    assert lease.prefix_len == 24
    assert (lease.routers, lease.dns, lease.server) == ((GATEWAY,), (GATEWAY,), GATEWAY)
    assert lease.search == ("lab.test", "example.test")
    assert lease.mtu == 1500
    assert lease.lease_time == 3600


def resolve(guest: Guest, name: str, kind: str = "a", server: str = "") -> str:
    """nslookup's answer, without the lines that name the server."""
    output = guest.sh(f"busybox nslookup -type={kind} {name} {server}")
    return output.split("\n\n", 1)[1]


def check_download(guest: Guest, files: FileServer, size: int) -> None:
    """That many bytes over HTTP from the host, by their SHA-256."""
    url = f"http://{HOST}:{files.port}/data?size={size}"
    assert guest.sh(f"busybox wget -q -O - '{url}' | busybox sha256sum", 120).split()[0] == files.sha256(size)


def check_forward(guest: Guest, service: Service) -> None:
    """A page of the guest's through a forwarded port, and nothing once the forward is gone."""
    guest.sh(f"d=$(mktemp -d) && echo hello from {guest.mac} >$d/index.html && busybox httpd -p 80 -h $d")
    service.expose("127.0.0.1:8080", f"{guest.lease.ip}:80")
    try:
        fetched = service.host.run("curl", "-sS", "--max-time", "10", "http://127.0.0.1:8080/")
        assert fetched.stdout == f"hello from {guest.mac}\n", fetched.stderr
    finally:
        body = {"local": "127.0.0.1:8080", "protocol": "tcp"}
        assert service.request("POST", "/services/forwarder/unexpose", body)[0] == 200
    closed = service.host.run("curl", "-sS", "--max-time", "10", "http://127.0.0.1:8080/")
    assert closed.returncode == CURL_COULD_NOT_CONNECT
