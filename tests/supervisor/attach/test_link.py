import os
import socket

import pytest

from supervisor.attach.link import PipeLink, SocketLink


def test_a_socket_is_closed_when_the_other_end_hung_up_even_with_frames_unread() -> None:
    ours, theirs = socket.socketpair()
    link = SocketLink(ours)
    assert link.filenos() == (ours.fileno(),)
    theirs.send(b"frame")
    assert not link.is_closed()
    theirs.close()
    assert link.is_closed()
    link.close()


def test_closing_a_socket_ends_it_for_those_who_hold_duplicates_too() -> None:
    ours, theirs = socket.socketpair()
    duplicate = ours.dup()
    SocketLink(ours).close()
    assert theirs.recv(1) == b""
    duplicate.close()
    theirs.close()


@pytest.mark.parametrize("end", ["reader", "writer"])
def test_pipes_are_closed_when_either_is(end: str) -> None:
    to_read, writer = os.pipe()
    reader, to_write = os.pipe()
    ends = {"reader": reader, "writer": writer}
    link = PipeLink(to_read, to_write)
    assert list(link.filenos()) == [to_read, to_write]
    os.write(writer, b"frame")
    assert not link.is_closed()
    os.close(ends.pop(end))
    assert link.is_closed()
    link.close()
    for fd in ends.values():
        os.close(fd)
    link.close()
