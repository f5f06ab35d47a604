"""What the system tells of a datagram socket's other ends, with unix_diag and without."""

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.attach import unix_peers
from supervisor.attach.unix_peers import is_bound, is_peer_gone, references


@contextlib.contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        yield sock


@pytest.fixture(params=["unix_diag", "probe"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "probe":
        monkeypatch.setattr(unix_peers, "NETLINK_SOCK_DIAG", 31)  # no such protocol


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("is_mutual", [False, True])
def test_a_peer_is_there_until_it_is_closed(tmp_path: Path, is_mutual: bool) -> None:
    with bound(tmp_path / "ours") as ours:
        with bound(tmp_path / "theirs") as theirs:
            ours.connect(str(tmp_path / "theirs"))
            if is_mutual:
                theirs.connect(str(tmp_path / "ours"))
            assert not is_peer_gone(ours)
        assert is_peer_gone(ours)


def test_a_peer_whose_name_another_has_taken_is_gone(tmp_path: Path) -> None:
    with bound(tmp_path / "ours") as ours:
        with bound(tmp_path / "theirs"):
            ours.connect(str(tmp_path / "theirs"))
        (tmp_path / "theirs").unlink()
        with bound(tmp_path / "theirs"):
            assert is_peer_gone(ours)


def test_a_peer_that_has_unlinked_its_name_is_there(tmp_path: Path) -> None:
    with bound(tmp_path / "ours") as ours, bound(tmp_path / "theirs"):
        ours.connect(str(tmp_path / "theirs"))
        (tmp_path / "theirs").unlink()
        assert not is_peer_gone(ours)


def test_a_name_is_bound_while_its_socket_is_open(tmp_path: Path) -> None:
    assert not is_bound(str(tmp_path / "s"))
    with bound(tmp_path / "s"):
        assert is_bound(str(tmp_path / "s"))
    assert not is_bound(str(tmp_path / "s"))


def test_nobody_is_gone_while_no_descriptor_is_left_to_ask_with(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with bound(tmp_path / "ours") as ours, bound(tmp_path / "theirs"):
        ours.connect(str(tmp_path / "theirs"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            answers = is_peer_gone(ours), is_bound(str(tmp_path / "theirs"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert answers == (False, True)


def test_every_socket_that_is_connected_is_one_reference_more(tmp_path: Path) -> None:
    with bound(tmp_path / "ours") as ours:
        (own,) = references(ours)
        assert own is not None
        with contextlib.ExitStack() as stack:
            for number in range(1, 4):
                other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                other.connect(str(tmp_path / "ours"))
                assert references(ours) == [own + number]
        assert references(ours) == [own]


@pytest.mark.parametrize("name", ["\n", "\n\n x", "\n{line}"])
def test_nobody_lies_about_another_s_socket_by_a_path_of_several_lines(tmp_path: Path, name: str) -> None:
    with bound(tmp_path / "ours") as ours, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        (own,) = references(ours)
        assert own is not None
        other.connect(str(tmp_path / "ours"))
        line = f"0: {own:08X} 00000000 00000000 0002 01 {os.fstat(ours.fileno()).st_ino} "
        with contextlib.chdir(tmp_path), contextlib.ExitStack() as stack:
            for number in range(64):  # the table has no order
                stack.enter_context(bound(Path(f"{number}{name.format(line=line)}")))
            assert references(ours) == [own + 1]
