"""VPNKit's handshake, byte by byte."""

import asyncio
import struct
from pathlib import Path

import pytest

from supervisor.attach import handshake
from supervisor.attach.hyperkit import HyperkitListener
from supervisor.attach.link import SocketLink
from supervisor.endpoints import UnixEndpoint
from tests.supervisor.attach.listening import MAC, MTU, Bed, Client, listening

UUID = "C3D68012-0208-11EA-9FD7-F2189899AB08"
INIT = b"VMN3T" + struct.pack("<I", 22) + b"a" * 40
COMMAND = b"\x01" + UUID.encode() + bytes(4)
REPLY = (b"\x01" + struct.pack("<HH", MTU, MTU + 14) + bytes.fromhex(MAC.replace(":", ""))).ljust(258, b"\0")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"{tmp_path}/h"


def make(path: str) -> HyperkitListener:
    return HyperkitListener(UnixEndpoint(path))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("piece", [1 << 20, 50, 7, 1])
@pytest.mark.parametrize("kind", [1, 8])
def test_a_vm_is_told_its_mac_and_mtu_and_not_a_byte_of_its_frames_is_taken(path: str, piece: int, kind: int) -> None:
    async def scenario() -> None:
        async with listening(make(path)) as bed:
            with await Client.connect(path) as client:
                await client.say(INIT + bytes([kind]) + COMMAND[1:] + b"frames", piece)
                assert await client.hear(49 + 258) == INIT + REPLY
                attachment = await bed.attachment()
                assert (attachment.kind, attachment.framing) == ("hyperkit", "stream16")
                assert isinstance(attachment.link, SocketLink)
                assert await asyncio.get_running_loop().sock_recv(attachment.link.sock, 99) == b"frames"
                assert bed.uuids == [UUID.lower()]
                attachment.link.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("at", range(5))
def test_every_wrong_byte_of_the_first_word_ends_it(path: str, at: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with listening(make(path)) as bed:
            with await Client.connect(path) as client:
                await client.say(INIT[:at] + b"x" + INIT[at + 1 :])
                assert await client.hear(1) == b""
            assert bed.attached.empty()

    asyncio.run(scenario())
    (warning,) = warnings(caplog)
    assert "expected b'VMN3T' first, got b'" in warning


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (b"\x06" + COMMAND[1:], "expected command 1 or 8, got 6"),
        (b"\x00" + COMMAND[1:], "expected command 1 or 8, got 0"),
        (COMMAND[:1] + b"g" + COMMAND[2:], "expected a UUID as text, got b'g3D68012"),
        (COMMAND[:1] + bytes(36) + bytes(4), "expected a UUID as text"),
        (COMMAND[:1] + b"{" + COMMAND[1:36] + bytes(4), "expected a UUID as text"),
    ],
)
def test_a_command_that_is_none_is_refused_with_a_reason(
    path: str, command: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with listening(make(path)) as bed:
            with await Client.connect(path) as client:
                await client.say(INIT + command)
                refusal = (await client.hear(49 + 258 + 1))[49:]
                assert (len(refusal), refusal[0]) == (258, 2)
                assert refusal[2 : 2 + refusal[1]].decode().startswith(reason)
            assert bed.attached.empty()

    asyncio.run(scenario())
    (warning,) = warnings(caplog)
    assert reason in warning


@pytest.mark.parametrize("length", [0, 1, 48, 49, 89])
def test_a_vm_that_hangs_up_early_is_one_line_in_the_log(
    path: str, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with listening(make(path)):
            with await Client.connect(path) as client:
                await client.say((INIT + COMMAND)[:length])
            while not caplog.records:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scenario(), 10))
    (warning,) = warnings(caplog)
    assert "it hung up during the handshake" in warning or "reset" in warning or "Broken pipe" in warning


@pytest.mark.parametrize("length", [0, 1, 48, 49, 89])
def test_silence_ends_at_the_deadline(
    path: str, length: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT", 0.1)

    async def scenario() -> None:
        async with listening(make(path)) as bed:
            with await Client.connect(path) as client:
                await client.say((INIT + COMMAND)[:length])
                assert await client.is_dropped()
            assert bed.attached.empty()

    asyncio.run(scenario())
    assert [line.split(": ", 1)[1] for line in warnings(caplog)] == ["its handshake was not through after 0.1 s"]


async def shake(bed: Bed, client: Client) -> None:
    await client.say(INIT + COMMAND)
    assert await client.hear(49 + 258) == INIT + REPLY
    (await bed.attachment()).link.close()


def test_those_who_are_silent_do_not_keep_others_waiting(path: str) -> None:
    async def scenario() -> None:
        async with listening(make(path)) as bed:
            silent = [await Client.connect(path) for _ in range(50)]
            with await Client.connect(path) as client:
                await asyncio.wait_for(shake(bed, client), 2)
            for other in silent:
                other.sock.close()

    asyncio.run(scenario())


def test_the_oldest_makes_room_when_there_are_too_many(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "MAX_HANDSHAKES", 2)

    async def scenario() -> None:
        async with listening(make(path)) as bed:
            clients = [await Client.connect(path) for _ in range(3)]
            assert await clients[0].is_dropped()
            for client in clients[1:]:
                await shake(bed, client)
            for client in clients:
                client.sock.close()

    asyncio.run(scenario())
    (warning,) = warnings(caplog)
    assert warning.endswith("2 others came after it")


def test_closing_the_listener_ends_handshakes_quietly(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with listening(make(path)):
            client = await Client.connect(path)
            await client.say(INIT)
            await client.hear(49)
        with client:
            assert await client.is_dropped()

    asyncio.run(scenario())
    assert not caplog.records


def test_closing_the_listener_closes_a_connection_whose_handshake_has_not_begun(path: str) -> None:
    async def scenario() -> None:
        listener = make(path)
        async with listening(listener):
            client = await Client.connect(path)
            while not listener._handshakes:
                listener._accept()
        with client:
            assert await client.is_dropped()

    asyncio.run(scenario())


def test_the_hint_names_the_socket(path: str) -> None:
    async def hint() -> str:
        listener = make(path)
        listener.close()
        return listener.attach_hint()

    assert asyncio.run(hint()) == f"-s 2:0,virtio-vpnkit,path={path},uuid=UUID"
