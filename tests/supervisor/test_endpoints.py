import os
import socket
import stat
from pathlib import Path

import pytest

from supervisor.endpoints import (
    MAX_UNIX_PATH,
    TcpEndpoint,
    UnixEndpoint,
    bound_endpoint,
    listen,
    parse_endpoint,
    unlink_endpoint,
)
from supervisor.errors import StartError


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("unix:///run/x.sock", UnixEndpoint("/run/x.sock")),
        ("tcp://127.0.0.1:80", TcpEndpoint("127.0.0.1", 80)),
        ("tcp://[::1]:0", TcpEndpoint("::1", 0)),
    ],
)
def test_a_url_names_an_endpoint_and_back(url: str, endpoint: UnixEndpoint | TcpEndpoint) -> None:
    assert parse_endpoint(url) == endpoint
    assert str(endpoint) == url


@pytest.mark.parametrize(
    "url",
    ["", "x", "unix://x", "unix://", "unix://host/x", "tcp://", "tcp://:80", "tcp://h", "tcp://h:x", "tcp://h:70000",
     "tcp://h:1/x", "tcp://u@h:1", "http://h:1", "unix:///x?y"],
)  # fmt: skip
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected unix:///PATH or tcp://HOST:PORT"):
        parse_endpoint(url)


def test_a_path_longer_than_a_socket_address_is_refused() -> None:
    assert parse_endpoint("unix:///" + "x" * (MAX_UNIX_PATH - 1))
    with pytest.raises(ValueError, match="at most 107 bytes"):
        parse_endpoint("unix:///" + "x" * MAX_UNIX_PATH)


def test_a_unix_socket_is_private_and_removed(tmp_path: Path) -> None:
    endpoint = UnixEndpoint(str(tmp_path / "s"))
    with listen(endpoint) as sock:
        assert bound_endpoint(sock) == endpoint
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    unlink_endpoint(endpoint)
    unlink_endpoint(endpoint)
    assert not (tmp_path / "s").exists()


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_in_use(tmp_path: Path) -> None:
    endpoint = UnixEndpoint(str(tmp_path / "s"))
    listen(endpoint).close()
    with listen(endpoint), pytest.raises(StartError, match=f"unix://{tmp_path}/s: address already in use"):
        listen(endpoint)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0, 0o777)])
def test_a_plain_unix_socket_has_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with listen(UnixEndpoint(str(tmp_path / "s"), is_plain=True)):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_plain_unix_socket_replaces_nothing(tmp_path: Path) -> None:
    endpoint = UnixEndpoint(str(tmp_path / "s"), is_plain=True)
    listen(endpoint).close()
    with pytest.raises(StartError, match=f"unix://{tmp_path}/s: address already in use"):
        listen(endpoint)
    assert (tmp_path / "s").exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(StartError, match="is not a socket"):
        listen(UnixEndpoint(str(tmp_path / "s")))
    assert (tmp_path / "s").read_text() == "precious"


def test_a_tcp_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = TcpEndpoint("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartError, match=f"cannot listen on {endpoint}: address already in use"):
            listen(endpoint)
