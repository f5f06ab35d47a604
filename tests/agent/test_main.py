"""The agent as a program, on real tap devices in namespaces of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.framing import FrameReader
from tests.guests.namespace import Namespace
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

ARP = b"\x08\x06"
MAC = "5a:94:ef:e4:0c:ee"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("agent") as namespace:
        yield namespace


def start(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "agent", *arguments], stderr=output)


def end(agent: subprocess.Popen[bytes]) -> int:
    agent.send_signal(signal.SIGTERM)
    return agent.wait(5)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Where an agent connects: ``unix://{tmp_path}/s``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(10)
        yield listener


def frames_of(link: socket.socket, framing: str = "stream32") -> Iterator[bytes]:
    reader = FrameReader(framing)
    while size := link.recv_into(reader.space()):
        yield from [bytes(frame) for frame in reader.received(size)]


def test_the_device_outlives_its_links_and_the_agent_connects_again(namespace: Namespace, tmp_path: Path) -> None:
    path, log = tmp_path / "s", tmp_path / "log"
    agent = start(*("--connect", f"unix://{path}", "--netns", namespace.name, "--mac", MAC, "--mtu", "4000"), log=log)
    try:
        wait_for(lambda: "next try in 0.2 s" in log.read_text(), 5, "a second attempt without a listener")
        namespace.ip("addr", "add", "192.0.2.2/24", "dev", "tap0")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(10)
            for _ in range(2):
                link, _ = listener.accept()
                with link:
                    link.settimeout(5)
                    namespace.run("busybox", "ping", "-c", "1", "-W", "1", "192.0.2.1")
                    question = next(frame for frame in frames_of(link) if frame[12:14] == ARP)
                    assert question[6:12] == bytes.fromhex(MAC.replace(":", ""))
        assert "mtu 4000" in namespace.run("ip", "link", "show", "tap0").stdout
    finally:
        assert end(agent) == 0, log.read_text()
    assert namespace.run("ip", "link", "show", "tap0").returncode != 0


def test_a_device_that_is_deleted_ends_the_agent(namespace: Namespace, tmp_path: Path, listener: socket.socket) -> None:
    log = tmp_path / "log"
    agent = start("--connect", f"unix://{listener.getsockname()}", "--netns", namespace.name, log=log)
    wait_for(lambda: "connected" in log.read_text(), 5, "the connection")
    namespace.ip("link", "delete", "tap0")
    assert agent.wait(5) == 1
    assert "the tap device is gone" in log.read_text()


def test_a_device_that_was_there_stays_and_nothing_on_it_is_changed(
    namespace: Namespace, tmp_path: Path, listener: socket.socket
) -> None:
    log = tmp_path / "log"
    namespace.ip("tuntap", "add", "tap7", "mode", "tap")
    namespace.ip("link", "set", "tap7", "address", MAC, "mtu", "3000", "up")
    namespace.ip("addr", "add", "192.0.2.2/24", "dev", "tap7")
    options = ("--interface", "tap7", "--pre-existing", "--netns", namespace.name)
    agent = start("--connect", f"unix://{listener.getsockname()}", *options, log=log)
    try:
        link, _ = listener.accept()
        with link:
            link.settimeout(5)
            namespace.run("busybox", "ping", "-c", "1", "-W", "1", "192.0.2.1")
            assert any(frame[12:14] == ARP for frame in frames_of(link))
    finally:
        assert end(agent) == 0, log.read_text()
    shown = namespace.run("ip", "addr", "show", "tap7").stdout
    assert all(part in shown for part in (f"link/ether {MAC}", "mtu 3000", "inet 192.0.2.2/24"))


def test_a_device_that_should_be_there_and_is_not_ends_the_agent(namespace: Namespace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    agent = start("--connect", "unix:///x", "--pre-existing", "--netns", namespace.name, log=log)
    assert agent.wait(5) == 1
    assert "there is no device tap0 to join" in log.read_text()
    assert namespace.run("ip", "link", "show", "tap0").returncode != 0


def test_a_device_that_is_no_tap_is_said_to_be_none(namespace: Namespace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    agent = start("--connect", "unix:///x", "--interface", "lo", "--netns", namespace.name, log=log)
    assert agent.wait(5) == 1
    assert "lo is there and no tap device" in log.read_text()


@pytest.mark.parametrize(
    ("right", "what"), [("net_admin", "it takes CAP_NET_ADMIN"), ("net_raw", "DHCP takes CAP_NET_RAW")]
)
def test_a_right_that_is_missing_is_named(namespace: Namespace, tmp_path: Path, right: str, what: str) -> None:
    log = tmp_path / "log"
    argv = ["setpriv", f"--bounding-set=-{right}", sys.executable, "-m", "agent", "--connect", "unix:///x"]
    with log.open("wb") as output:
        assert namespace.start(*argv, output=output).wait(10) == 1
    assert what in log.read_text()


@pytest.mark.parametrize(("names", "ends"), [("eth0,lo", True), ("eth0,ens3,enp0s1", False)])
def test_the_agent_ends_at_once_where_another_device_is_there(
    namespace: Namespace, tmp_path: Path, names: str, ends: bool
) -> None:
    log = tmp_path / "log"
    agent = start("--connect", "unix:///x", "--stop-if-exist", names, "--netns", namespace.name, log=log)
    if ends:
        assert agent.wait(5) == 0
        assert "there is lo" in log.read_text()
    else:
        wait_for(lambda: "next try" in log.read_text(), 5, "an attempt to connect")
        assert end(agent) == 0


def test_the_mac_is_the_same_at_every_start_and_another_for_another_device(
    namespace: Namespace, tmp_path: Path
) -> None:
    macs = []
    for interface in ("tap0", "tap0", "tap1"):
        log = tmp_path / "log"
        agent = start("--connect", "unix:///x", "--interface", interface, "--netns", namespace.name, log=log)
        wait_for(lambda log=log: "next try" in log.read_text(), 5, "the device")  # type: ignore[misc]
        shown = namespace.run("ip", "link", "show", interface).stdout
        macs.append(shown.partition("link/ether ")[2].split()[0])
        assert end(agent) == 0
    assert macs[0] == macs[1] != macs[2]


def test_an_http_server_that_gives_no_link_is_quoted(tmp_path: Path, listener: socket.socket) -> None:
    log = tmp_path / "log"
    with Namespace("agent") as namespace:
        url = f"unix://{listener.getsockname()}/connect"
        agent = start("--connect", url, "--netns", namespace.name, log=log)
        link, _ = listener.accept()
        with link:
            assert link.recv(16).startswith(b"POST /connect")
            link.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        wait_for(lambda: "next try" in log.read_text(), 5, "the end of the link")
        assert end(agent) == 0
    assert "the host answered 'HTTP/1.1 404 Not Found': it gives no link here" in log.read_text()


def test_our_own_standard_input_and_output_are_a_link_that_ends_the_agent_with_it(
    namespace: Namespace, tmp_path: Path
) -> None:
    ours, theirs = socket.socketpair()
    options = ("--connect", "stdio:", "--netns", namespace.name, "--mac", MAC)
    with ours, (tmp_path / "log").open("wb") as log:
        with theirs:
            argv = [sys.executable, "-m", "agent", *options]
            agent = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=log)
        ours.settimeout(5)
        assert any(frame[6:12] == bytes.fromhex(MAC.replace(":", "")) for frame in frames_of(ours, "stream16"))
        ours.shutdown(socket.SHUT_RDWR)
        assert agent.wait(5) == 0
    assert "the link ended" in (tmp_path / "log").read_text()


def test_udhcpc_is_started_with_each_link_and_ends_with_the_agent(
    namespace: Namespace, tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    (tmp_path / "udhcpc").symlink_to(busybox)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    log = tmp_path / "log"
    url = f"unix://{listener.getsockname()}"
    agent = start("--connect", url, "--dhcp", "udhcpc", "--netns", namespace.name, log=log)
    try:
        for _ in range(2):
            link, _ = listener.accept()
            with link:
                link.settimeout(5)
                assert any(b"udhcp" in frame for frame in frames_of(link))
    finally:
        assert end(agent) == 0, log.read_text()
    assert not namespace.pids()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--connect", "http://localhost"], "expected vsock://CID:PORT/connect, unix:///PATH"),
        (["--connect", "unix:///x", "--mac", "01:00:5e:00:00:01"], "expected a unicast MAC"),
        (["--interface", "a-name-of-16-byte"], "an interface's name has 1 to 15 bytes"),
        (["--connect", "unix:///x", "--dhcp", "dhclient"], "--dhcp dhclient: there is no such program"),
        (["--connect", "stdio:no-such-program --flag"], "no program 'no-such-program'"),
    ],
)
def test_a_bad_argument_is_named_and_ends_with_status_2(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    argv = [sys.executable, "-m", "agent", *arguments]
    env = os.environ | {"PATH": str(tmp_path)}  # with no program in it, whatever this machine has
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_namespace_that_does_not_exist_ends_with_status_1(tmp_path: Path) -> None:
    agent = start("--connect", "unix:///x", "--netns", "no-such-namespace", log=tmp_path / "log")
    assert agent.wait(5) == 1
    assert "cannot make the tap device" in (tmp_path / "log").read_text()
