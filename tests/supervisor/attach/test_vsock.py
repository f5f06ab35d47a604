"""The request that makes a connection a VM's link, byte by byte, on the unix form of vsock."""

import asyncio
import errno
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest

from supervisor.attach import handshake
from supervisor.attach.handshake import HandshakeError
from supervisor.attach.kinds import parse_listener
from supervisor.attach.link import SocketLink
from supervisor.attach.vsock import HybridEndpoint, VsockListener, framing_asked
from supervisor.endpoints import UnixEndpoint, VsockEndpoint
from supervisor.errors import StartError
from tests.supervisor.attach.listening import Client, listening

REQUEST = b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"
"""gvforwarder's."""
ANY_CID = 0xFFFFFFFF


def make(directory: Path, name: str = "v") -> VsockListener:
    return VsockListener(HybridEndpoint(1024, f"{directory}/{name}"))


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("vsock://:1024", VsockEndpoint(None, 1024)),
        ("vsock://1:1024", VsockEndpoint(1, 1024)),
        ("vsock://3:4294967294/", VsockEndpoint(3, 4294967294)),
        ("vsock://null:1024/run/v", HybridEndpoint(1024, "/run/v")),
        ("unix:///run/v", UnixEndpoint("/run/v")),
    ],
)
def test_a_url_names_a_port_of_vsock_or_a_socket_that_stands_for_one(url: str, endpoint: object) -> None:
    found = parse_listener(f"vsock={url}").endpoint
    assert found == endpoint
    assert str(found) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["", "vsock://", "vsock://1024", "vsock://:", "vsock://:x", "vsock://:4294967295", "vsock://4294967295:1",
     "vsock://null:1024", "vsock://null:1024/", "vsock://null:/v", "vsock://:1024/v", "tcp://h:1"],
)  # fmt: skip
def test_any_other_url_is_refused(url: str) -> None:
    expected = (
        "expected vsock=vsock://:PORT or vsock=vsock://CID:PORT or vsock=vsock://null:PORT/PATH or vsock=unix:///PATH"
    )
    with pytest.raises(ValueError, match=f"{expected}, got "):
        parse_listener(f"vsock={url}")


def test_users_are_known_on_a_unix_socket_alone() -> None:
    parse_listener("vsock=vsock://null:1024/v,allow-uid=0")
    with pytest.raises(ValueError, match="expected no allow-uid"):
        parse_listener("vsock=vsock://:1024,allow-uid=0")


@pytest.mark.parametrize("piece", [1 << 20, 20, 1])
@pytest.mark.parametrize("connect", [b"", b"CONNECT 1024\n"])
def test_nothing_is_answered_to_the_request_and_not_a_byte_behind_it_is_taken(
    tmp_path: Path, connect: bytes, piece: int
) -> None:
    async def scenario() -> None:
        async with listening(make(tmp_path)) as bed:
            with await Client.connect(f"{tmp_path}/v") as client:
                await client.say(connect + REQUEST + b"\x0e\0frames", piece)
                attachment = await bed.attachment()
                assert (attachment.kind, attachment.framing) == ("vsock", "stream16")
                assert isinstance(attachment.link, SocketLink)
                assert await asyncio.get_running_loop().sock_recv(attachment.link.sock, 99) == b"\x0e\0frames"
                attachment.link.close()
                assert await client.hear(99) == (b"OK 1024\n" if connect else b"")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("head", "framing"),
    [
        (REQUEST, "stream16"),
        (b"GET /connect HTTP/1.0\n\n", "stream16"),
        (b"CONNECT /connect HTTP/1.1\r\n\r\n", "stream16"),
        (b"POST http://vm/connect HTTP/1.1\r\n\r\n", "stream16"),
        (b"POST /connect?framing=qemu HTTP/1.1\r\n\r\n", "stream32"),
    ],
)
def test_any_method_will_do_and_framing_may_be_asked_for(head: bytes, framing: str) -> None:
    assert framing_asked(head) == framing


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\r\n\r\n", "expected an HTTP request"),
        (b"POST /connect\r\n\r\n", "expected an HTTP request"),
        (b"POST /connect HTTP/2\r\n\r\n", "expected an HTTP request"),
        (b"post /connect HTTP/1.1\r\n\r\n", "expected an HTTP request"),
        (b"POST /tunnel HTTP/1.1\r\n\r\n", "expected a request for /connect, got '/tunnel'"),
        (b"POST //[ HTTP/1.1\r\n\r\n", "expected a request for /connect"),
        (b"POST /connect?framing=morse HTTP/1.1\r\n\r\n", "expected framing=qemu or none, got 'morse'"),
        (b"POST /connect HTTP/1.1\r\nContent-Length: 01\r\n\r\n", "without a body"),
        (b"POST /connect HTTP/1.1\nTransfer-encoding: chunked\n\n", "without a body"),
    ],
)
def test_any_other_request_is_refused(head: bytes, reason: str) -> None:
    with pytest.raises(HandshakeError, match=reason):
        framing_asked(head)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"CONNECT 1025\n", r"expected CONNECT 1024, got b'CONNECT 1025\\n'"),
        (b"CONNECT 1024\nPOST / HTTP/1.1\r\n\r\n", "expected a request for /connect"),
        (b"CONNECT 1024\nCONNECT 1024\n\n", "expected an HTTP request"),
        (b"x" * 8192, "more than 8192 bytes"),
        (b"POST /connect HTTP/1.1\r\n" + b"X: y\r\n" * 1400, "more than 8192 bytes"),
    ],
)
def test_a_broken_handshake_is_dropped_with_one_line(
    tmp_path: Path, said: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with listening(make(tmp_path)) as bed:
            with await Client.connect(f"{tmp_path}/v") as client:
                await client.say(said)
                assert await client.is_dropped()
            assert bed.attached.empty()

    asyncio.run(scenario())
    (record,) = caplog.records
    assert reason.replace("\\\\", "\\") in record.getMessage()


@pytest.mark.parametrize("length", [0, 1, 13, 30, 13 + len(REQUEST) - 1])
def test_silence_ends_at_the_deadline(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT", 0.1)

    async def scenario() -> None:
        async with listening(make(tmp_path)) as bed:
            with await Client.connect(f"{tmp_path}/v") as client:
                await client.say((b"CONNECT 1024\n" + REQUEST)[:length])
                assert await client.is_dropped()
            assert bed.attached.empty()

    asyncio.run(scenario())
    (record,) = caplog.records
    assert "its handshake was not through" in record.getMessage()


def test_in_a_directory_the_socket_has_hyperkits_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        listener = VsockListener(HybridEndpoint(1024, str(tmp_path)))
        assert str(listener.endpoint) == f"unix://{tmp_path}/00000002.00000400"
        assert listener.attach_hint() == f"moorage agent --connect unix://{tmp_path}/00000002.00000400/connect"
        async with listening(listener) as bed:
            with await Client.connect(f"{tmp_path}/00000002.00000400") as client:
                await client.say(REQUEST)
                (await bed.attachment()).link.close()
        assert not list(tmp_path.iterdir())

    asyncio.run(scenario())


def test_a_path_that_grew_too_long_is_named(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * (107 - len(str(tmp_path))))
    directory.mkdir()
    with pytest.raises(StartError, match=r"00000002\.00000400 is longer than the 107 bytes"):
        VsockListener(HybridEndpoint(1024, str(directory)))


def test_on_a_plain_unix_socket_any_port_will_do(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with listening(VsockListener(UnixEndpoint(f"{tmp_path}/v_52"))) as bed:
            with await Client.connect(f"{tmp_path}/v_52") as client:
                await client.say(b"CONNECT 52\n" + REQUEST)
                (await bed.attachment()).link.close()
                assert await client.hear(6) == b"OK 52\n"

    asyncio.run(scenario())


def test_a_system_without_vsock_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(StartError, match=r"cannot listen on vsock://:1024: this system has no AF_VSOCK; .*modprobe"):
        VsockListener(VsockEndpoint(None, 1024))


@pytest.fixture
def vsock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The one socket of AF_VSOCK, on a system that may have none; the real ones are in tests/e2e/test_vsock.py."""
    vsock = Mock(spec=socket.socket)
    for name, value in {"AF_VSOCK": 40, "VMADDR_CID_ANY": ANY_CID, "socket": Mock(return_value=vsock)}.items():
        monkeypatch.setattr(socket, name, value, raising=False)
    return vsock


def test_a_context_id_that_is_not_this_machines_is_named(vsock: Mock) -> None:
    vsock.bind.side_effect = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    with pytest.raises(StartError, match=r"cannot listen on vsock://77:10240: .*77 is no context id of this machine"):
        VsockListener(VsockEndpoint(77, 10240))
    vsock.bind.assert_called_once_with((77, 10240))
    vsock.close.assert_called_once_with()


def test_the_hint_for_a_vm_names_the_hosts_port(vsock: Mock) -> None:
    vsock.getsockname.return_value = (ANY_CID, 40_123)
    hint = VsockListener(VsockEndpoint(None, 40_123)).attach_hint()
    vsock.bind.assert_called_once_with((ANY_CID, 40_123))
    assert hint == "in the VM: moorage agent --connect vsock://2:40123/connect"
