"""The agent as a program, on real tap devices in namespaces of its own."""

from __future__ import annotations

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


def frames_of(link: socket.socket) -> Iterator[bytes]:
    reader = FrameReader()
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


def test_a_device_that_is_deleted_ends_the_agent(namespace: Namespace, tmp_path: Path) -> None:
    path, log = tmp_path / "s", tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        agent = start("--connect", f"unix://{path}", "--netns", namespace.name, log=log)
        wait_for(lambda: "connected" in log.read_text(), 5, "the connection")
        namespace.ip("link", "delete", "tap0")
        assert agent.wait(5) == 1
    assert "the tap device is gone" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--connect", "http://localhost"], "expected vsock://CID:PORT/connect, unix:///PATH"),
        (["--connect", "unix:///x", "--mac", "01:00:5e:00:00:01"], "expected a unicast MAC"),
    ],
)
def test_a_bad_argument_is_named_and_ends_with_status_2(arguments: list[str], complaint: str) -> None:
    done = subprocess.run([sys.executable, "-m", "agent", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_namespace_that_does_not_exist_ends_with_status_1(tmp_path: Path) -> None:
    agent = start("--connect", "unix:///x", "--netns", "no-such-namespace", log=tmp_path / "log")
    assert agent.wait(5) == 1
    assert "cannot make the tap device" in (tmp_path / "log").read_text()
