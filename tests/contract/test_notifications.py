"""gvproxy's notifications, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.gvproxy import MAC, Gvproxy, Notified
from tests.guests.host import make_host
from tests.guests.namespace import Namespace
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

FLAGS = (*("-notification", "unix://DIR/notified", "-listen-qemu", "unix://DIR/qemu.sock"), *("-ssh-port", "-1"))


OTHER = "5a:94:ef:e4:0c:ef"
"""Of something behind a bridge in the VM."""


def frame_from(mac: str) -> bytes:
    """An ARP probe (RFC 5227), which claims no address."""
    source = bytes.fromhex(mac.replace(":", ""))
    question = bytes.fromhex("0001080006040001") + source + bytes(4) + bytes(6) + bytes((192, 168, 127, 1))
    return b"\xff" * 6 + source + b"\x08\x06" + question.ljust(46, b"\0")


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        yield host


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[Notified]:
    notified = Notified(tmp_path / "notified")
    yield notified
    notified.close()


def test_each_is_one_connection_with_one_json_object_and_a_newline(
    host: Namespace, tmp_path: Path, notified: Notified
) -> None:
    """One new unix-stream connection per message, one JSON object + newline, then close:
    `{"notification_type":"ready"}`, `..."connection_established","mac_address":M` (first frame from a MAC not in the
    CAM), `..."connection_closed","mac_address":M` (per MAC of the lost connection)"""
    with Gvproxy(host, tmp_path, *FLAGS) as running:
        notified.wait(1)
        vm = running.attach()
        notified.wait(2)
        vm.close()
        notified.wait(3)
        assert running.ended() == 0
    assert notified.raw == [
        b'{"notification_type":"ready"}\n',
        f'{{"notification_type":"connection_established","mac_address":"{MAC}"}}\n'.encode(),
        f'{{"notification_type":"connection_closed","mac_address":"{MAC}"}}\n'.encode(),
    ]


def test_a_client_that_sent_nothing_produces_nothing(host: Namespace, tmp_path: Path, notified: Notified) -> None:
    """a client that sent nothing produces nothing"""
    with Gvproxy(host, tmp_path, *FLAGS) as running:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(running.qemu))
        assert running.ended() == 0
    assert notified.messages == [{"notification_type": "ready"}]


def test_each_mac_of_a_lost_connection_is_told(host: Namespace, tmp_path: Path, notified: Notified) -> None:
    """`connection_established` (first frame from a MAC not in the CAM), `connection_closed` (per MAC of the lost
    connection)"""
    with Gvproxy(host, tmp_path, *FLAGS) as running:
        with running.attach() as vm:
            notified.wait(2)
            for _ in range(2):
                vm.send(frame_from(OTHER))
            notified.wait(3)
        assert running.ended() == 0
    assert [tuple(message.values()) for message in notified.wait(5)] == [
        ("ready",),
        ("connection_established", MAC),
        ("connection_established", OTHER),
        ("connection_closed", MAC),
        ("connection_closed", OTHER),
    ]


def test_a_mac_that_moves_to_another_connection_is_not_told(
    host: Namespace, tmp_path: Path, notified: Notified
) -> None:
    """A MAC moving between connections is not announced; `/connect` clients come and go"""
    with Gvproxy(host, tmp_path, *FLAGS, "-listen", "unix://DIR/api.sock") as running:
        with running.attach():
            notified.wait(2)
            with socket.socket(socket.AF_UNIX) as second:
                second.connect(str(running.api))
                frame = frame_from(MAC)
                second.sendall(b"POST /connect HTTP/1.1\r\nHost: \r\n\r\n" + len(frame).to_bytes(2, "little") + frame)
                wait_for(lambda: "attached to default on unix://" in running.log_text(), 10, "the second")
        assert running.ended() == 0
    assert [message["notification_type"] for message in notified.wait(3)] == [
        "ready",
        "connection_established",
        "connection_closed",
    ]


def test_where_no_vm_can_attach_is_a_hypervisor_error(host: Namespace, tmp_path: Path, notified: Notified) -> None:
    """`..."hypervisor_error"` (listen/accept/stdio errors)"""
    running = Gvproxy(host, tmp_path, *FLAGS[:2], "-listen-qemu", "unix://DIR/nowhere/qemu.sock", *FLAGS[4:])
    assert running.ended() == 0
    assert notified.wait(1) == [{"notification_type": "hypervisor_error"}]


def test_the_end_of_standard_input_is_a_hypervisor_error(host: Namespace, tmp_path: Path, notified: Notified) -> None:
    """`..."hypervisor_error"` (listen/accept/stdio errors)"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stdio = (theirs.fileno(), theirs.fileno())
        running = Gvproxy(host, tmp_path, *FLAGS[:2], *FLAGS[4:], "-listen-stdio", "accept", stdio=stdio)
        theirs.close()
        notified.wait(1)
        ours.close()
        assert running.ended() == 0
    assert [message["notification_type"] for message in notified.wait(2)] == ["ready", "hypervisor_error"]


def test_nobody_there_is_logged_and_not_tried_again(host: Namespace, tmp_path: Path) -> None:
    """dial failure is logged, not retried"""
    with Gvproxy(host, tmp_path, *FLAGS) as running:
        running.attach().close()
        assert running.ended() == 0
    assert running.log_text().count("cannot send notification to ") == 3
