import socket
import subprocess
import sys
from pathlib import Path

import pytest

WRAPPER = [sys.executable, "-P", "-m", "cli", "qemu-wrapper"]


def wrapped(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WRAPPER, *arguments], capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    return sock


def test_the_command_has_the_connection_as_descriptor_3(tmp_path: Path, listener: socket.socket) -> None:
    with listener:
        done = wrapped(str(tmp_path / "s"), "sh", "-c", 'printf "%s %s" hello "$1" >&3', "sh", "-netdev")
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(99) == b"hello -netdev"
            assert connection.recv(99) == b"", "nobody else holds it"
    assert done.returncode == 0


def test_options_of_the_command_are_its_own(tmp_path: Path, listener: socket.socket) -> None:
    with listener:
        done = wrapped(str(tmp_path / "s"), "echo", "-chardev", "stdio,id=c", "-h", "--help", "--", "-device")
    assert (done.returncode, done.stdout) == (0, "-chardev stdio,id=c -h --help -- -device\n")


def test_its_exit_status_is_the_commands(tmp_path: Path, listener: socket.socket) -> None:
    with listener:
        assert wrapped(str(tmp_path / "s"), "sh", "-c", "exit 42").returncode == 42


def test_where_nobody_listens_the_socket_is_named(tmp_path: Path) -> None:
    done = wrapped(str(tmp_path / "none"), "true")
    assert (done.returncode, done.stderr) == (
        1,
        f"moorage: cannot connect to {tmp_path}/none: No such file or directory\n",
    )


@pytest.mark.parametrize(
    ("command", "status", "reason"), [("no-such-qemu", 127, "No such file"), ("/etc", 126, "Permission denied")]
)
def test_a_command_that_cannot_be_run_is_named(
    tmp_path: Path, listener: socket.socket, command: str, status: int, reason: str
) -> None:
    with listener:
        done = wrapped(str(tmp_path / "s"), command)
    assert done.returncode == status
    assert done.stderr.startswith(f"moorage: cannot run {command}: {reason}")


def test_without_a_command_its_usage_is_shown(tmp_path: Path) -> None:
    done = wrapped(str(tmp_path / "s"))
    assert done.returncode == 2
    assert "COMMAND" in done.stderr
