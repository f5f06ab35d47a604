import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.attach.link import SocketLink
from supervisor.attach.listener import Attachment
from supervisor.attach.options import Options
from supervisor.attach.qemu import QemuListener
from supervisor.endpoints import Endpoint, TcpEndpoint, UnixEndpoint
from tests.supervisor.attach.listening import Client, listening


def attach(endpoint: Endpoint, connect: Callable[[Endpoint], socket.socket]) -> tuple[Attachment, socket.socket]:
    """What a listener makes of one connection, and the client's end of it."""

    async def scenario() -> tuple[Attachment, socket.socket]:
        listener = QemuListener(endpoint)
        async with listening(listener) as bed:
            client = connect(listener.endpoint)
            return await bed.attachment(), client

    return asyncio.run(scenario())


def connect_unix(endpoint: Endpoint) -> socket.socket:
    assert isinstance(endpoint, UnixEndpoint)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(endpoint.path)
    return sock


def connect_tcp(endpoint: Endpoint) -> socket.socket:
    assert isinstance(endpoint, TcpEndpoint)
    return socket.create_connection((endpoint.host, endpoint.port))


def test_a_vm_on_a_unix_socket_is_known_by_its_credentials(tmp_path: Path) -> None:
    attachment, client = attach(UnixEndpoint(f"{tmp_path}/q"), connect_unix)
    assert (attachment.kind, attachment.framing) == ("qemu", "stream32")
    assert attachment.listener == f"unix://{tmp_path}/q"
    assert attachment.peer == f"uid={os.getuid()} pid={os.getpid()}"
    assert not (tmp_path / "q").exists()
    attachment.link.close()
    client.close()


def test_a_vm_on_tcp_is_known_by_its_address_and_kept_alive() -> None:
    attachment, client = attach(TcpEndpoint("127.0.0.1", 0), connect_tcp)
    host, port = client.getsockname()
    assert attachment.peer == f"{host}:{port}"
    assert isinstance(attachment.link, SocketLink)
    assert attachment.link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert attachment.link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    attachment.link.close()
    client.close()


def test_only_the_users_named_may_attach(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(allowed: int) -> str:
        listener = QemuListener(UnixEndpoint(f"{tmp_path}/q"), Options(allow_uid=frozenset({allowed})))
        async with listening(listener) as bed:
            with await Client.connect(f"{tmp_path}/q") as client:
                done, pending = await asyncio.wait(
                    [asyncio.ensure_future(bed.attachment()), asyncio.ensure_future(client.is_dropped())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in pending:
                    task.cancel()
                result = done.pop().result()
        if isinstance(result, Attachment):
            result.link.close()
            return "attached"
        return "refused"

    assert asyncio.run(scenario(os.getuid())) == "attached"
    assert not caplog.records
    assert asyncio.run(scenario(os.getuid() + 1)) == "refused"
    assert [record.getMessage() for record in caplog.records] == [
        f"refused a connection to unix://{tmp_path}/q of uid {os.getuid()}: allow-uid does not name it"
    ]


def test_running_out_of_descriptors_pauses_accepting_and_then_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("supervisor.attach.listener.ACCEPT_PAUSE", 0.01)
    accept = socket.socket.accept
    failures = [OSError(24, "Too many open files")]

    def failing_once(self: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing_once)
    attachment, client = attach(UnixEndpoint(f"{tmp_path}/q"), connect_unix)
    assert "Too many open files" in caplog.text
    attachment.link.close()
    client.close()


def test_the_hint_is_the_exact_line_for_qemu() -> None:
    async def hint() -> str:
        listener = QemuListener(TcpEndpoint("127.0.0.1", 0))
        listener.close()
        assert isinstance(listener.endpoint, TcpEndpoint)
        return listener.attach_hint().replace(str(listener.endpoint.port), "PORT")

    assert asyncio.run(hint()) == (
        "-netdev stream,id=net0,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=PORT "
        "-device virtio-net-pci,netdev=net0,mac=5a:94:ef:e4:0c:ee"
    )
