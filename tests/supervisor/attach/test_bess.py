"""BESS listeners: SEQPACKET sockets, no handshake."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from supervisor.attach.bess import BessListener
from supervisor.attach.kinds import parse_listener
from supervisor.attach.link import SocketLink
from supervisor.endpoints import UnixEndpoint
from supervisor.errors import StartError
from tests.supervisor.attach.listening import listening


@pytest.mark.parametrize("scheme", ["unixpacket", "unix"])
def test_every_client_is_a_vm_and_each_message_a_frame(tmp_path: Path, scheme: str) -> None:
    path = f"{tmp_path}/b"

    async def scenario() -> None:
        listener = parse_listener(f"bess={scheme}://{path}").open()
        async with listening(listener) as bed:
            assert str(listener.endpoint) == f"{scheme}://{path}"
            for number in range(3):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                    client.connect(path)
                    client.send(b"frame %d" % number)
                    client.send(b"another")
                    attachment = await bed.attachment()
                    assert (attachment.kind, attachment.framing) == ("bess", "messages")
                    assert attachment.peer == f"uid={os.getuid()} pid={os.getpid()}"
                    assert isinstance(attachment.link, SocketLink)
                    assert attachment.link.sock.recv(99) == b"frame %d" % number
                    assert not attachment.link.is_closed()
                assert attachment.link.is_closed()
                attachment.link.close()
        assert not os.path.exists(path)

    asyncio.run(scenario())


def test_a_path_that_is_listened_on_is_refused_and_one_left_behind_is_taken(tmp_path: Path) -> None:
    endpoint = UnixEndpoint(f"{tmp_path}/b", "unixpacket")
    first = BessListener(endpoint)
    with pytest.raises(StartError, match=f"cannot listen on unixpacket://{tmp_path}/b: address already in use"):
        BessListener(endpoint)
    first.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(endpoint.path)
    BessListener(endpoint).close()
