"""Packets of a SEQPACKET socket as a stream, and back."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from supervisor import packet_relay
from supervisor.endpoints import UnixEndpoint, listen
from supervisor.packet_relay import MAX_PACKET, PIECE, PacketRelay


class Bed:
    """A relay, and a server behind it that is the test itself."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "packets"
        server = UnixEndpoint(str(directory / "stream"))
        self._server = listen(server)
        self.relay = PacketRelay(UnixEndpoint(str(self.path)), server)

    async def connect(self) -> tuple[socket.socket, socket.socket]:
        """A client, and its connection at the server."""
        client = self.dial()
        return client, await self.accept()

    def dial(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(str(self.path))
        client.setblocking(False)
        return client

    async def accept(self) -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._server)
        return connection


@contextlib.asynccontextmanager
async def relaying(directory: Path) -> AsyncIterator[Bed]:
    bed = Bed(directory)
    bed.relay.start()
    try:
        async with asyncio.timeout(10):
            yield bed
    finally:
        await bed.relay.stop()
        bed.relay.close()
        bed._server.close()
        assert not bed.path.exists()


async def hear(sock: socket.socket, size: int = 1 << 20) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, size)


async def hear_all(sock: socket.socket) -> list[bytes]:
    """Every packet, to the end."""
    packets = []
    while packet := await hear(sock):
        packets.append(packet)
    return packets


def test_packets_are_a_stream_and_the_ends_of_both_ways_are_passed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relaying(tmp_path) as bed:
            client, server = await bed.connect()
            with client, server:
                for packet in (b"GET / HT", b"TP/1.1\r\n\r\n"):
                    client.send(packet)
                client.shutdown(socket.SHUT_WR)
                assert b"".join(await hear_all(server)) == b"GET / HTTP/1.1\r\n\r\n"
                server.sendall(b"answer")
                server.shutdown(socket.SHUT_WR)
                assert await hear_all(client) == [b"answer"]

    asyncio.run(scenario())


def test_what_comes_back_is_in_packets_that_a_reader_of_4096_bytes_does_not_cut(tmp_path: Path) -> None:
    data = bytes(range(256)) * 400

    async def scenario() -> None:
        async with relaying(tmp_path) as bed:
            client, server = await bed.connect()
            with client:
                with server:
                    await asyncio.get_running_loop().sock_sendall(server, data)
                packets = await hear_all(client)
        assert b"".join(packets) == data
        assert max(map(len, packets)) <= PIECE

    asyncio.run(scenario())


def test_a_packet_as_large_as_the_system_sends_is_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 400

    async def scenario() -> None:
        async with relaying(tmp_path) as bed:
            client, server = await bed.connect()
            with client, server:
                client.send(data)
                received = b""
                while len(received) < len(data):
                    received += await hear(server)
        assert received == data

    asyncio.run(scenario())


def test_a_packet_that_is_too_large_ends_its_connection_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_relay, "MAX_PACKET", 1000)
    assert MAX_PACKET > 1000

    async def scenario() -> None:
        async with relaying(tmp_path) as bed:
            client, server = await bed.connect()
            other, others_server = await bed.connect()
            with client, server, other, others_server:
                client.send(bytes(1001))
                assert await hear(server) == await hear(client) == b""
                other.send(bytes(1000))
                assert await hear(others_server) == bytes(1000)

    asyncio.run(scenario())


def test_a_client_beyond_the_limit_waits_until_another_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_relay, "MAX_CONNECTIONS", 1)

    async def scenario() -> None:
        async with relaying(tmp_path) as bed:
            first, firsts_server = await bed.connect()
            with bed.dial() as second:
                second.send(b"second")
                waiting = asyncio.get_running_loop().create_task(bed.accept())
                await asyncio.sleep(0)
                assert not waiting.done()
                first.close()
                assert await hear(firsts_server) == b""
                firsts_server.close()
                with await waiting as server:
                    assert await hear(server) == b"second"

    asyncio.run(scenario())


def test_clients_are_let_go_where_no_server_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relaying(tmp_path) as bed:
            (tmp_path / "stream").unlink()
            with bed.dial() as client:
                assert await hear(client) == b""

    asyncio.run(scenario())
