"""gvproxy's forwards, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c): routes, statuses, texts."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.guests.host import ADDRESS
from tests.guests.service import Service

pytestmark = pytest.mark.guest

EXPOSE, UNEXPOSE, ALL = (f"/services/forwarder/{name}" for name in ("expose", "unexpose", "all"))
VM = "192.168.127.2"


@pytest.fixture(autouse=True)
def _none_left(service: Service) -> Iterator[None]:
    """Every test begins without forwards."""
    yield
    for forward in service.get(ALL):
        assert unexpose(service, forward["local"], forward["protocol"]) == (200, "")
    assert service.request("GET", ALL) == (200, "[]\n")


def expose(service: Service, local: str, remote: str = f"{VM}:80", protocol: str = "tcp") -> tuple[int, str]:
    return service.request("POST", EXPOSE, {"local": local, "remote": remote, "protocol": protocol})


def unexpose(service: Service, local: str, protocol: str = "tcp") -> tuple[int, str]:
    return service.request("POST", UNEXPOSE, {"local": local, "protocol": protocol})


def locals_of(service: Service) -> list[tuple[str, str]]:
    return [(forward["local"], forward["protocol"]) for forward in service.get(ALL)]


def connect(service: Service, host: str, port: int) -> socket.socket:
    with service.host.entered():
        return socket.create_connection((host, port), 5)


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- the routes


def test_all_is_sorted_by_local_then_protocol(service: Service) -> None:
    """`/services/forwarder/all`: `[{"local","remote","protocol"}]` sorted by local then protocol; `[]` if none."""
    assert service.request("GET", ALL) == (200, "[]\n")
    for local, protocol in ((":7002", "udp"), (":7002", "tcp"), (":7001", "udp")):
        assert expose(service, local, f"{VM}:53", protocol) == (200, "")
    assert service.request("GET", ALL)[1] == (
        f'[{{"local":":7001","remote":"{VM}:53","protocol":"udp"}},'
        f'{{"local":":7002","remote":"{VM}:53","protocol":"tcp"}},'
        f'{{"local":":7002","remote":"{VM}:53","protocol":"udp"}}]\n'
    )


def test_expose_reads_its_body_as_go_does(service: Service) -> None:
    """keys case-insensitive, unknown keys and trailing text ignored, protocol default tcp (lower case only)"""
    body = f'{{"LOCAL":":7003","Remote":"{VM}:80","more":[1]}} and more'.encode()
    assert service.request("POST", EXPOSE, body) == (200, "")
    assert locals_of(service) == [(":7003", "tcp")]
    assert expose(service, ":7004", protocol="TCP") == (500, "unknown protocol TCP\n")


@pytest.mark.parametrize(
    ("method", "body", "text"),
    [
        ("GET", b"", "post only"),
        ("POST", b"", "EOF"),
        ("POST", b"junk", "invalid character 'j' looking for beginning of value"),
        ("POST", b"[]", "json: cannot unmarshal array into Go value of type types.ExposeRequest"),
        ("POST", b'{"local":":7005","remote":""}', "missing port in address"),
        ("POST", b'{"local":":7005","remote":"192.168.127.2"}', "address 192.168.127.2: missing port in address"),
        ("POST", b'{"local":":7005","remote":":80"}', "address @: missing port in address"),
    ],
)
def test_a_malformed_request_is_400(service: Service, method: str, body: bytes, text: str) -> None:
    """400: `post only`; JSON error text (`EOF` for empty, `invalid character ...`, `json: cannot unmarshal array into
    Go value of type types.ExposeRequest`); for tcp/udp `missing port in address` or `address X: missing port in
    address`; `":port"` => caller's IP (over a unix socket => 400 `address @: missing port in address`)"""
    assert service.request(method, EXPOSE, body) == (400, f"{text}\n")


@pytest.mark.parametrize(
    ("protocol", "local", "remote", "text"),
    [
        ("sctp", ":7006", f"{VM}:80", "unknown protocol sctp"),
        ("tcp", ":7006", "[fd00::2]:80", "invalid remote addr"),
        ("tcp", ":7006", f"{VM}:66000", 'strconv.ParseUint: parsing "66000": value out of range'),
        ("udp", ":7006", f"{VM}:9x", 'strconv.ParseUint: parsing "9x": invalid syntax'),
        ("tcp", "7006", f"{VM}:80", "listen tcp: address 7006: missing port in address"),
        ("tcp", "::1:7006", f"{VM}:80", "listen tcp: address ::1:7006: too many colons in address"),
        ("tcp", ":80a", f"{VM}:80", "listen tcp: lookup tcp/80a: unknown port"),
        ("udp", ":80a", f"{VM}:80", "lookup udp/80a: unknown port"),
        ("tcp", ":70000", f"{VM}:80", "listen tcp: address 70000: invalid port"),
        ("tcp", "192.0.2.1:7006", f"{VM}:80", "listen tcp 192.0.2.1:7006: bind: cannot assign requested address"),
        ("npipe", "pipe", "tcp://192.168.127.2:80", "named pipes are not supported by this platform"),
    ],
)
def test_what_cannot_be_forwarded_is_500(service: Service, protocol: str, local: str, remote: str, text: str) -> None:
    """500 texts: `unknown protocol X`; `invalid remote addr` (not exactly one colon, e.g. IPv6); `strconv.ParseUint:
    parsing "X": value out of range` / `invalid syntax`; `listen tcp ADDR: ...`; `lookup udp/80a: unknown port`; npipe
    off Windows `named pipes are not supported by this platform`"""
    assert expose(service, local, remote, protocol) == (500, f"{text}\n")


@pytest.mark.parametrize(
    ("remote", "text"),
    [
        (
            "192.168.127.2:80",
            'failed to parse remote uri :192.168.127.2:80 : parse "192.168.127.2:80": '
            "first path segment in URL cannot contain colon",
        ),
        ("http://192.168.127.2:80", "remote protocol for unix forwarder is not implemented: http"),
        ("tcp://192.168.127.2", 'strconv.ParseUint: parsing "": invalid syntax'),
        ("ssh-tunnel://core@192.168.127.2/run/s", "key not provided for unix-ssh connection"),
        ("ssh-tunnel://core@192.168.127.2:22?key=/k", "remote uri must contain a path to a socket file"),
        ("ssh-tunnel://core@192.168.127.2:22/?key=/k", "remote uri must contain a path to a socket file"),
    ],
)
def test_a_unix_forward_that_leads_nowhere_is_500(service: Service, tmp_path: Path, remote: str, text: str) -> None:
    """unix: `failed to parse remote uri :R : ...`, `remote protocol for unix forwarder is not implemented: S`, `key not
    provided for unix-ssh connection`, `remote uri must contain a path to a socket file`"""
    assert expose(service, str(tmp_path / "s"), remote, "unix") == (500, f"{text}\n")
    assert not (tmp_path / "s").exists()


def test_a_second_forward_of_the_same_end_is_500(service: Service) -> None:
    """`proxy already running for PROTO on LOCAL`"""
    assert expose(service, ":6443", f"{VM}:6443") == (200, "")
    assert expose(service, ":6443", f"{VM}:6443") == (500, "proxy already running for tcp on :6443\n")
    status, text = service.request("POST", "/v1/forwards", {"local": ":6443", "remote": f"{VM}:1"})
    assert (status, json.loads(text)) == (
        409,
        {
            "code": "conflict",
            "message": f"proxy already running for tcp on :6443: it leads to {VM}:6443 on network default; "
            "DELETE that forward first",
        },
    )


def test_a_host_name_as_remote_is_found_on_the_network_or_an_error(service: Service) -> None:
    """a host name **panics: connection closed without response**; better: resolves, or answers with an error"""
    assert expose(service, ":7007", "host.docker.internal:80") == (200, "")
    assert expose(service, ":7008", "nobody:80") == (500, "lookup nobody: no such host\n")
    zone: dict[str, Any] = {"Name": "lab.", "Records": [{"Name": "web", "IP": VM}], "DefaultIP": ""}
    assert service.request("POST", "/services/dns/add", zone) == (200, "")
    assert expose(service, ":7008", "WEB.lab:80") == (200, "")
    assert service.get(ALL)[1]["remote"] == "WEB.lab:80"


def test_unexpose_matches_exactly_and_once(service: Service) -> None:
    """POST `/services/forwarder/unexpose` `{"local","protocol"}`: 200 empty; 500 `proxy not found`; exact string match
    of local+protocol; listener closed"""
    assert expose(service, "127.0.0.1:7009") == (200, "")
    connect(service, "127.0.0.1", 7009).close()
    for local, protocol in ((":7009", "tcp"), ("localhost:7009", "tcp"), ("127.0.0.1:7009", "udp")):
        assert unexpose(service, local, protocol) == (500, "proxy not found\n")
    assert unexpose(service, "127.0.0.1:7009") == (200, "")
    assert unexpose(service, "127.0.0.1:7009") == (500, "proxy not found\n")
    with pytest.raises(ConnectionRefusedError):
        connect(service, "127.0.0.1", 7009)


# --- the host's end


def test_a_forward_without_a_host_listens_on_every_address_of_ipv4_and_ipv6(service: Service) -> None:
    """local as `:port`"""
    assert expose(service, ":7010") == (200, "")
    for host in ("127.0.0.1", ADDRESS, "::1"):
        connect(service, host, 7010).close()


def test_a_port_may_be_a_services_name(service: Service) -> None:
    """Go's `net` looks it up; `lookup udp/80a: unknown port` where there is none of that name"""
    port = socket.getservbyname("http-alt", "tcp")
    assert expose(service, "127.0.0.1:HTTP-alt") == (200, "")
    connect(service, "127.0.0.1", port).close()
    assert unexpose(service, "127.0.0.1:HTTP-alt") == (200, "")
    for name in ("no\0ne", "h\u00e9"):
        assert expose(service, f":{name}") == (500, f"listen tcp: lookup tcp/{name}: unknown port\n")


def test_a_forward_listens_on_the_address_it_names_and_no_other(service: Service) -> None:
    """local as `ip:port`, and as `[v6]:port`"""
    assert expose(service, "127.0.0.1:7011") == (200, "")
    assert expose(service, "[::1]:7011") == (200, "")
    for host in ("127.0.0.1", "::1"):
        connect(service, host, 7011).close()
    with pytest.raises(ConnectionRefusedError):
        connect(service, ADDRESS, 7011)


@pytest.mark.parametrize(("local", "host", "other"), [("0.0.0.0", ADDRESS, "::1"), ("[::]", "::1", ADDRESS)])
def test_a_forward_of_every_address_of_one_family_has_none_of_the_other(
    service: Service, local: str, host: str, other: str
) -> None:
    """local as `ip:port`: the service takes it at its word; in drop-in mode it is as in Go (test_flows)"""
    assert expose(service, f"{local}:7012") == (200, "")
    connect(service, host, 7012).close()
    with pytest.raises(ConnectionRefusedError):
        connect(service, other, 7012)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_0_is_unexposed_as_it_was_asked_for_or_as_it_is_listed(service: Service, protocol: str) -> None:
    """exact string match of local+protocol: of `:0` both strings are its own, as long as they mean one forward"""
    for named in ("127.0.0.1:0", ":0"):
        assert expose(service, named, protocol=protocol) == (200, "")
        assert unexpose(service, named, protocol) == (200, "")
        assert unexpose(service, named, protocol) == (500, "proxy not found\n")
    for _ in range(2):
        assert expose(service, ":0", protocol=protocol) == (200, "")
    one, other = (local for local, _ in locals_of(service))
    assert unexpose(service, ":0", protocol) == (500, f":0 is any of {one}, {other}; say which\n")
    status, text = service.request("DELETE", f"/v1/forwards?local=:0&protocol={protocol}")
    assert (status, json.loads(text)["code"]) == (409, "conflict")
    assert unexpose(service, one, protocol) == (200, "")
    assert unexpose(service, ":0", protocol) == (200, "")
    assert locals_of(service) == []


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_0_is_allocated_and_told(service: Service, protocol: str) -> None:
    """port 0 (allocated, and told): in /v1's answer and in the listing; the gvproxy route answers an empty 200."""
    told = []
    for local in ("127.0.0.1:0", "127.0.0.1:0"):
        body = {"local": local, "remote": f"{VM}:80", "protocol": protocol}
        status, text = service.request("POST", "/v1/forwards", body)
        assert status == 201
        told.append(json.loads(text)["local"])
    assert expose(service, "127.0.0.1:0", protocol=protocol) == (200, "")
    listed = [local for local, _ in locals_of(service)]
    assert len(set(listed)) == 3
    assert set(told) < set(listed)
    assert all(int(local.rpartition(":")[2]) > 0 for local in listed)


def test_a_port_in_use_is_an_error_that_names_the_holder_where_it_may(service: Service) -> None:
    """POST expose on a port in use: 500 `listen tcp 127.0.0.1:5201: bind: address already in use`"""
    refused = "listen tcp 127.0.0.1:5201: bind: address already in use"
    body = {"local": "127.0.0.1:5201", "remote": f"{VM}:80"}
    with service.host.entered():
        holder = socket.create_server(("127.0.0.1", 5201))
    with holder:
        assert expose(service, "127.0.0.1:5201") == (500, f"{refused}\n")
        status, text = service.request("POST", "/v1/forwards", body)
    held = f"held by process {os.getpid()} ({psutil.Process().name()})"
    assert (status, json.loads(text)) == (409, {"code": "in-use", "message": f"{refused}: {held}"})
    assert expose(service, ":5201") == (200, "")
    status, text = service.request("POST", "/v1/forwards", body)
    held = f"held by the forward tcp :5201 to {VM}:80; DELETE that forward first"
    assert (status, json.loads(text)["message"]) == (409, f"{refused}: {held}")


def test_a_unix_forward_replaces_a_dead_socket_and_nothing_else(service: Service, tmp_path: Path) -> None:
    """`unix` forwards delete any file at `local`: only a dead socket is replaced, anything else is an error."""
    sock, live, file = (tmp_path / name for name in ("dead", "live", "file"))
    file.write_text("precious")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(sock))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(live))
        listening.listen()
        for path in (live, file):
            refused = f"listen unix {path}: bind: address already in use\n"
            assert expose(service, str(path), f"tcp://{VM}:80", "unix") == (500, refused)
    assert file.read_text() == "precious"
    assert expose(service, str(sock), f"tcp://{VM}:80", "unix") == (200, "")
    assert stat.S_IMODE(sock.stat().st_mode) == 0o600
    assert unexpose(service, str(sock), "unix") == (200, "")
    assert not sock.exists()


@pytest.mark.parametrize(
    ("path", "reason"), [("/nowhere/at/all", "no such file or directory"), ("/" + "x" * 120, "invalid argument")]
)
def test_a_unix_forward_that_cannot_be_bound_says_why(service: Service, path: str, reason: str) -> None:
    """`listen unix P: bind: ...`"""
    assert expose(service, path, f"tcp://{VM}:80", "unix") == (500, f"listen unix {path}: bind: {reason}\n")


def test_a_keys_passphrase_is_shown_to_nobody(service: Service, tmp_path: Path) -> None:
    """`ssh-tunnel://user@ip[:22]/sock?key=FILE[&passphrase=P]`: better, nobody who lists forwards reads P"""
    local, shown = str(tmp_path / "s"), f"ssh-tunnel://core@{VM}/run/s?key=/k&passphrase=REDACTED"
    for remote in (
        f"ssh-tunnel://core@{VM}/run/s?key=/k&passphrase=swordfish",
        f"ssh-tunnel://core@{VM}/run/s?key=/k&pass%70hrase=sword%66ish#fish",
    ):
        body = {"local": local, "remote": remote, "protocol": "unix"}
        status, text = service.request("POST", "/v1/forwards", body)
        assert (status, json.loads(text)["remote"].replace("%70", "p")) == (201, shown)
        assert service.get(ALL)[0]["remote"] == service.get("/v1/forwards")["forwards"][0]["remote"]
        listed = [service.request(method, path)[1] for method, path in (("GET", ALL), ("GET", "/v1/forwards"))]
        listed.append(service.request("POST", "/v1/forwards", body)[1])
        assert "it leads to ssh-tunnel" in listed[-1]
        assert not any("fish" in text or "%66" in text for text in listed)
        assert unexpose(service, local, "unix") == (200, "")
    assert "fish" not in expose(service, local, f"{VM}:1/?passphrase=swordfish", "unix")[1]
    assert "fish" not in service.log_text()


def test_what_is_kept_of_forwards_is_for_the_service_alone(service: Service) -> None:
    """The state has passphrases."""
    state = service.directory / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in state.glob("moorage.db*")} == {0o600}


# --- many


def test_1000_forwards_come_and_go_in_20_seconds_and_leave_no_descriptor(service: Service) -> None:
    """1,000 forwards exposed and unexposed over REST in under 20 s, no descriptor left."""
    assert service.process is not None
    (supervisor,) = (pid for pid, line in service.processes().items() if " supervisor " in f"{line} ")
    before = fds(supervisor)
    began = time.monotonic()
    for port in range(20_000, 21_000):
        assert expose(service, f"127.0.0.1:{port}") == (200, "")
    exposed = time.monotonic()
    assert len(locals_of(service)) == 1000
    for port in range(20_000, 21_000):
        assert unexpose(service, f"127.0.0.1:{port}") == (200, "")
    took = time.monotonic() - began
    print(f"1,000 exposed in {exposed - began:.1f} s, all gone after {took:.1f} s")
    assert took < 20
    assert fds(supervisor) <= before
