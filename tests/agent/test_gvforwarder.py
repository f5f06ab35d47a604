"""gvforwarder's command line, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c)."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent import gvforwarder
from tests.guests.namespace import Namespace
from tests.guests.waiting import wait_for

DEFAULT_MAC = bytes.fromhex("5a94efe40cee")
REQUEST = b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory that programs are looked for in."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def install(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).touch(0o755)


@pytest.mark.usefixtures("programs")
def test_the_defaults_are_gvforwarders() -> None:
    """`-url vsock://2:1024/connect`, `-iface tap0`, `-stop-if-exist eth0,ens3,enp0s1`, `-mac 5a:94:ef:e4:0c:ee`;
    retries every 1 s"""
    options = gvforwarder.parse_options([])
    assert options.connect.url == "vsock://2:1024/connect"
    assert (options.connect.framing, options.framing) == ("stream16", None)
    assert (options.interface, options.mac) == ("tap0", DEFAULT_MAC)
    assert options.stop_if_exist == ["eth0", "ens3", "enp0s1"]
    assert (options.pre_existing, options.retry) == (False, (1.0, 1.0))


@pytest.mark.usefixtures("programs")
def test_the_flags_are_gvforwarders_in_gos_syntax() -> None:
    """`-url`, `-iface`, `-stop-if-exist`, `-mac`, `-mtu`, `-preexisting`, `-debug`"""
    given = ["-url=vsock://3:9/connect", "--iface", "tap7", "-stop-if-exist=", "-mac", "52:54:00:12:34:56", "-debug"]
    options = gvforwarder.parse_options(given)
    assert (options.connect.url, options.interface) == ("vsock://3:9/connect", "tap7")
    assert (options.stop_if_exist, options.mac) == ([], bytes.fromhex("525400123456"))


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("flags", [[], ["-mtu", "4000"], ["-mtu=65535"]])
def test_the_mtu_is_a_buffers_size_and_not_the_devices(flags: list[str]) -> None:
    """`-mtu 4000` (buffer): the device has what DHCP says"""
    assert gvforwarder.parse_options(flags).mtu is None


def test_a_device_that_is_there_is_left_as_it_is(programs: Path) -> None:
    """`-preexisting`: no MAC, no DHCP"""
    install(programs, "udhcpc", "dhclient")
    options = gvforwarder.parse_options(["-preexisting", "-iface", "tap7"])
    assert (options.pre_existing, options.mac, options.dhcp) == (True, None, "none")


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [(["udhcpc", "dhclient"], "udhcpc"), (["dhclient"], "dhclient"), ([], "own")],
)
def test_the_device_is_configured_by_the_programs_that_gvforwarder_runs(
    programs: Path, installed: list[str], chosen: str
) -> None:
    """then runs `udhcpc -f -q -i IF -v` or `dhclient -4 -d -v IF`; better: the agent itself where there is neither"""
    install(programs, *installed)
    assert gvforwarder.parse_options([]).dhcp == chosen


def connect(url: str) -> argparse.Namespace:
    return gvforwarder.parse_options([f"-url={url}"])


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("name", ["s", "connect"])
def test_a_unix_url_is_a_path_that_is_asked_for_connect(tmp_path: Path, name: str) -> None:
    """unix://path (path always /connect)"""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / name))
        listener.listen()
        with connect(f"unix://{tmp_path}/{name}").connect.connect():
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(len(REQUEST), socket.MSG_WAITALL) == REQUEST


@pytest.mark.parametrize("escaped", ["a program", "a%20program"])
def test_a_stdio_url_is_a_program_and_its_flags(programs: Path, escaped: str) -> None:
    """stdio:PROG?flag=val (no HTTP)"""
    program = programs / "a program"
    program.write_text(f'#!{shutil.which("sh", path=os.defpath)}\necho "$@"\n')
    program.chmod(0o755)
    endpoint = connect(f"stdio:{programs}/{escaped}?listen-stdio=accept&debug=1").connect
    assert endpoint.framing == "stream16"
    with endpoint.connect() as link:
        assert os.read(link.incoming, 99) == b"-listen-stdio=accept -debug=1\n"


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["-nope"], 2, "flag provided but not defined: -nope\nUsage of gvforwarder:\n"),
        (["-mtu", "many"], 2, 'invalid value "many" for flag -mtu: parse error\nUsage'),
        (["-url", "http://h"], 2, "expected vsock://CID:PORT/connect, unix:///PATH"),
        (["-h"], 0, "Usage of gvforwarder:\n"),
    ],
)
def test_a_bad_flag_ends_with_2_and_help_with_0(
    flags: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gvforwarder.parse_options(flags)
    assert ended.value.code == status
    assert said in capsys.readouterr().err


@pytest.mark.guest
def test_it_tries_once_a_second_and_joins_the_device_that_a_unit_made(tmp_path: Path) -> None:
    """retries every 1 s; sends the request, then frames behind 2 bytes, little-endian"""
    path, log = tmp_path / "s", tmp_path / "log"
    with Namespace("gvforwarder") as namespace:
        namespace.ip("tuntap", "add", "tap0", "mode", "tap")
        namespace.ip("addr", "add", "192.0.2.2/24", "dev", "tap0")
        argv = [sys.executable, "-m", "agent", "gvforwarder", "-preexisting", "-url", f"unix://{path}"]
        with log.open("wb") as output:
            agent = namespace.start(*argv, output=output)
        wait_for(lambda: "next try in 1.0 s" in log.read_text(), 10, "a first attempt")
        first = time.monotonic()
        wait_for(lambda: log.read_text().count("next try in 1.0 s") == 3, 20, "two more")
        assert time.monotonic() - first > 1.5
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(10)
            link, _ = listener.accept()
        with link:
            link.settimeout(10)
            assert link.recv(len(REQUEST), socket.MSG_WAITALL) == REQUEST
            namespace.run("busybox", "ping", "-c", "1", "-W", "1", "192.0.2.1")
            size = int.from_bytes(link.recv(2, socket.MSG_WAITALL), "little")
            assert len(link.recv(size, socket.MSG_WAITALL)) == size >= 42
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(10) == 0, log.read_text()


@pytest.mark.guest
def test_what_is_not_there_is_tried_again_every_second(tmp_path: Path) -> None:
    """retries every 1 s: also where there is no device to join (`-preexisting`), no program (stdio:PROG), or none of
    them any more"""
    log, program = tmp_path / "log", tmp_path / "program"
    argv = [sys.executable, "-m", "agent", "gvforwarder", "-preexisting", "-url", f"stdio:{program}?debug=1"]

    def wait_told(what: str, times: int) -> None:
        wait_for(lambda: log.read_text().count(what) >= times, 10, f"{times} times {what!r}")

    with Namespace("gvforwarder") as namespace:
        with log.open("wb") as output:
            agent = namespace.start(*argv, output=output)
        wait_told("cannot make the tap device tap0: there is no device tap0 to join", 2)
        namespace.ip("tuntap", "add", "tap0", "mode", "tap")
        wait_told("No such file", 2)
        program.write_text("#!/bin/sh\nexec sleep 100\n")
        program.chmod(0o755)
        wait_told("connected to", 1)
        namespace.ip("link", "delete", "tap0")
        wait_told("the tap device is gone", 1)
        namespace.ip("tuntap", "add", "tap0", "mode", "tap")
        wait_told("connected to", 2)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0, log.read_text()


def test_it_ends_with_0_where_a_device_is_there() -> None:
    """`-stop-if-exist` (exit 0 if present)"""
    argv = [sys.executable, "-m", "agent", "gvforwarder", "-stop-if-exist", "eth9,lo"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "there is lo" in ended.stderr
