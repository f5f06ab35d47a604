import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from supervisor.attach.kinds import parse_listener
from supervisor.attach.link import PipeLink, SocketLink
from supervisor.attach.stdio import StdioEndpoint, take_over
from supervisor.errors import StartError


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    """Our standard input and output, and the VM's ends of them."""
    stdin, to_us = os.pipe()
    from_us, stdout = os.pipe()
    fds = (stdin, stdout, to_us, from_us)
    yield fds
    for fd in fds:
        os.close(fd)


def test_two_pipes_are_a_link_and_their_places_carry_nothing_any_more(
    pipes: tuple[int, int, int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    stdin, stdout, to_us, from_us = pipes
    link = take_over(stdin, stdout)
    assert isinstance(link, PipeLink)
    to_read, to_write = link.filenos()
    os.write(to_us, b"in")
    assert os.read(stdin, 9) == b""
    assert os.read(to_read, 9) == b"in"
    os.write(stdout, b"a stray word")
    os.write(to_write, b"out")
    assert os.read(from_us, 99) == b"out"
    assert capfd.readouterr().err == "a stray word"
    assert not os.get_inheritable(to_read)
    assert not os.get_inheritable(to_write)
    link.close()


def test_one_socket_as_both_is_one_link() -> None:
    ours, theirs = socket.socketpair()
    other = os.dup(ours.fileno())
    link = take_over(ours.fileno(), other)
    assert isinstance(link, SocketLink)
    assert link.sock.family == socket.AF_UNIX
    link.sock.send(b"frame")
    assert theirs.recv(99) == b"frame"
    link.close()
    assert theirs.recv(1) == b""
    os.close(other)
    theirs.close()
    ours.close()


def test_two_sockets_are_two_descriptors() -> None:
    ends = [*socket.socketpair(), *socket.socketpair()]
    link = take_over(ends[0].fileno(), ends[2].fileno())
    assert isinstance(link, PipeLink)
    link.close()
    for end in ends:
        end.close()


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_file_carries_no_frames(pipes: tuple[int, int, int, int], place: str) -> None:
    with tempfile.TemporaryFile() as file:
        fds = (file.fileno(), pipes[1]) if place == "input" else (pipes[0], file.fileno())
        with pytest.raises(StartError, match=f"cannot attach a VM to standard {place}: it is neither a pipe nor"):
            take_over(*fds)


def test_only_the_bare_name_is_understood() -> None:
    assert parse_listener("stdio=").endpoint == StdioEndpoint()
    with pytest.raises(ValueError, match=r"expected stdio=, got 'stdio=unix:///x'"):
        parse_listener("stdio=unix:///x")
    with pytest.raises(ValueError, match="expected no allow-uid"):
        parse_listener("stdio=,allow-uid=0")


def test_the_service_says_why_it_cannot_start_on_a_file() -> None:
    with tempfile.TemporaryDirectory() as directory:
        flags = ["--runtime-dir", f"{directory}/r", "--state-dir", f"{directory}/s", "--api", f"unix://{directory}/a"]
        command = [sys.executable, "-P", "-m", "supervisor", *flags, "--listen", "stdio="]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "moorage: cannot attach a VM to standard input: it is neither a pipe nor a socket\n"
