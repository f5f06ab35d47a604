"""Clients of a forward that no VM serves."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from supervisor.forwards import unserved
from supervisor.forwards.unserved import Unserved

Scenario = Callable[[socket.socket, Unserved], Awaitable[None]]


def play(kind: int, scenario: Scenario) -> None:
    async def run() -> None:
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                sock.listen()
            sock.setblocking(False)
            turned_away = Unserved(sock)
            try:
                await scenario(sock, turned_away)
            finally:
                turned_away.stop()

    asyncio.run(asyncio.wait_for(run(), 10))


def knock(sock: socket.socket) -> socket.socket:
    """A client, connected by the kernel alone."""
    client = socket.create_connection(sock.getsockname(), 5)
    client.setblocking(False)
    return client


async def answer(client: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(client, 1)


def test_a_client_waits_at_first_and_is_reset_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(sock: socket.socket, turned_away: Unserved) -> None:
        monkeypatch.setattr(unserved, "PATIENCE", 3600.0)
        turned_away.start()
        with knock(sock) as early:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(answer(early), 0.05)
            turned_away.stop()
            monkeypatch.setattr(unserved, "PATIENCE", 0.0)
            turned_away.start()
            with knock(sock) as late:
                for client in (early, late):
                    with pytest.raises(ConnectionResetError):
                        await answer(client)

    play(socket.SOCK_STREAM, scenario)


def test_a_client_that_waits_is_left_to_who_serves_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(sock: socket.socket, turned_away: Unserved) -> None:
        monkeypatch.setattr(unserved, "PATIENCE", 0.05)
        turned_away.start()
        turned_away.start()
        with knock(sock):
            turned_away.stop()
            await asyncio.sleep(0.1)  # past the patience that was
            sock.accept()[0].close()

    play(socket.SOCK_STREAM, scenario)


def test_datagrams_to_nobody_are_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(sock: socket.socket, turned_away: Unserved) -> None:
        monkeypatch.setattr(unserved, "PATIENCE", 0.0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(200):
                client.sendto(b"stale", sock.getsockname())
            turned_away.start()
            await until_empty(sock)
            turned_away.stop()
            client.sendto(b"fresh", sock.getsockname())
        assert sock.recv(10) == b"fresh"

    play(socket.SOCK_DGRAM, scenario)


async def until_empty(sock: socket.socket) -> None:
    while True:
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        await asyncio.sleep(0.01)


def test_a_process_without_descriptors_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(sock: socket.socket, turned_away: Unserved) -> None:
        monkeypatch.setattr(unserved, "PATIENCE", 0.0)
        monkeypatch.setattr(unserved, "RETRY", 0.01)
        failures = iter([OSError(24, "Too many open files")] * 3)

        def fail(client: socket.socket) -> None:
            if error := next(failures, None):
                client.close()
                raise error
            client.close()

        monkeypatch.setattr(unserved, "_reset", fail)
        turned_away.start()
        for _ in range(5):
            with knock(sock) as client:
                assert await answer(client) == b""

    play(socket.SOCK_STREAM, scenario)
