"""``python -m supervisor.forwards.ssh_carrier FD``: carries one unix socket of the host to one in a guest, over SSH.

A process of its own for each such forward, because what an SSH server says are a guest's bytes. It gets the listening
socket over FD, a SEQPACKET socket, and has no way to the guest but by asking for it there: it sends one end of a
socket pair, and the supervisor has the guest's worker join it to the SSH server's port.

The SSH connection is made for the first client, shared by all (RFC 4254 section 5; OpenSSH's
``direct-streamlocal@openssh.com`` channels), and made anew when it is found dead. When the supervisor closes FD, no
more clients are taken, and the process ends with the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging.config
import os
import resource
import socket
import sys
from typing import Protocol

import asyncssh

from proto.errors import CodecError
from proto.fdpass import FdChannel
from proto.ssh import CallSshServer, CarrySsh
from supervisor import logs

TRIES = 60
"""To reach a guest's SSH server, which may take its time to boot."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 1.0
"""s between two tries; each is twice as long as the one before."""
CONNECT_TIMEOUT = 5.0
"""s for one try, key exchange and authentication included."""
OPEN_TIMEOUT = 5.0
"""s for the answer on a connection that may have died with its guest."""
REDIALS = 3
KEEPALIVE = 15.0
"""s without a word from the server; it is asked for a sign of life, and given up after three."""
CHUNK = 65536
MEMORY = 1 << 30
"""Bytes of address space: what a hostile server can make this process take. It uses 150 MB by itself."""

log = logging.getLogger("moorage.ssh")

KEY_ERRORS = (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError)
FINAL_ERRORS = (asyncssh.PermissionDenied, asyncssh.HostKeyNotVerifiable)
"""Another try gets the same answer."""
PASSING_ERRORS = (OSError, asyncssh.Error, TimeoutError, asyncio.IncompleteReadError)


class NotReached(Exception):
    """The SSH server, or the socket behind it; the message says why."""


class Reader(Protocol):
    """What asyncio's and asyncssh's have in common."""

    async def read(self, n: int = ..., /) -> bytes: ...


class Writer(Protocol):
    """Likewise."""

    def write(self, data: bytes, /) -> None: ...
    def write_eof(self) -> None: ...
    async def drain(self) -> None: ...


class Carrier:
    """The SSH connection and its clients."""

    def __init__(self, destination: CarrySsh, channel: FdChannel) -> None:
        self._to = destination
        self._channel = channel
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._name = f"{destination.user}@{destination.host}:{destination.port}{destination.path}"

    async def carry(self, client: socket.socket) -> None:
        """Serve a client to its end."""
        reader, writer = await asyncio.open_connection(sock=client)
        try:
            ssh_reader, ssh_writer = await self._open()
        except NotReached as error:
            log.warning("%s: %s", self._name, error)
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, ssh_writer))
                both.create_task(_pump(ssh_reader, writer))
        except* PASSING_ERRORS as errors:
            log.debug("a client of %s ended: %s", self._to.path, errors.exceptions[0])
            writer.transport.abort()
            ssh_writer.channel.abort()
        finally:
            writer.close()
            ssh_writer.close()

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.abort()

    async def _open(self) -> tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]:
        """A channel to the guest's socket. Raises NotReached."""
        reason = ""
        for _ in range(REDIALS):
            connection = await self._connected()
            try:
                async with asyncio.timeout(OPEN_TIMEOUT):
                    return await connection.open_unix_connection(self._to.path, encoding=None)
            except asyncssh.ChannelOpenError as error:
                reason = error.reason
                await asyncio.sleep(0)  # asyncssh refuses channels one turn before it says that a connection is closed
                if not connection.is_closed():
                    raise NotReached(f"the SSH server cannot open the socket: {reason}") from error
            except (TimeoutError, asyncssh.Error, OSError) as error:
                reason = str(error) or "no answer"
                connection.abort()
        raise NotReached(f"the connection breaks again and again: {reason}")

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """The connection that is there, or a new one. Raises NotReached."""
        async with self._connecting:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> asyncssh.SSHClientConnection:
        try:
            key = asyncssh.read_private_key(self._to.key, self._to.passphrase or None)
        except KEY_ERRORS as error:
            raise NotReached(f"the key in {self._to.key} cannot be used: {error}") from error
        delay, reason = FIRST_DELAY, ""
        for tries in range(TRIES):
            try:
                return await self._try_to_connect(key)
            except FINAL_ERRORS as error:
                raise NotReached(f"the SSH server refused: {error}") from error
            except (OSError, TimeoutError, asyncssh.Error) as error:
                reason = str(error) or "no answer"
            if tries == 0:
                log.info("%s: no SSH server yet (%s); a client waits for it", self._name, reason)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
        raise NotReached(f"no SSH server after {TRIES} tries: {reason}")

    async def _try_to_connect(self, key: asyncssh.SSHKey) -> asyncssh.SSHClientConnection:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                try:
                    await self._channel.asend(CallSshServer(), [theirs.fileno()])
                except OSError as error:
                    raise NotReached("this forward is gone") from error
            return await asyncssh.connect(
                self._to.host,
                self._to.port,
                sock=ours,
                username=self._to.user,
                client_keys=[key],
                preferred_auth="publickey",
                known_hosts=() if self._to.secure else None,
                agent_path=None,
                config=None,
                connect_timeout=CONNECT_TIMEOUT,
                keepalive_interval=KEEPALIVE,
            )
        except BaseException:
            ours.close()
            raise


async def _pump(reader: Reader, writer: Writer) -> None:
    """Carry one direction to its end, and pass on the end."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def serve(channel: FdChannel) -> None:
    """Take clients until the other end of `channel` is closed, then let them finish."""
    try:
        message, fds = await channel.arecv()
    except EOFError:
        return  # the forward went as soon as it came
    if not isinstance(message, CarrySsh) or len(fds) != 1:
        raise CodecError(f"{type(message).__name__} with {len(fds)} descriptors is nothing to carry")
    carrier = Carrier(message, channel)
    clients: set[asyncio.Task[None]] = set()
    with socket.socket(fileno=fds[0]) as listener:
        listener.setblocking(False)
        accepting = asyncio.get_running_loop().create_task(_accept(listener, carrier, clients))
        await _closed(channel)
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
    await asyncio.gather(*clients, return_exceptions=True)
    carrier.close()


async def _accept(listener: socket.socket, carrier: Carrier, clients: set[asyncio.Task[None]]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            client, _ = await loop.sock_accept(listener)
        except OSError as error:  # no descriptor left: the client waits in the backlog
            log.warning("cannot take a client: %s", error)
            await asyncio.sleep(LONGEST_DELAY)
            continue
        task = loop.create_task(carrier.carry(client))
        clients.add(task)
        task.add_done_callback(clients.discard)


async def _closed(channel: FdChannel) -> None:
    with contextlib.suppress(EOFError, OSError, CodecError):
        while True:
            _, fds = await channel.arecv()
            for fd in fds:
                os.close(fd)


def main() -> None:
    """Run until there is nothing left to carry."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.config.dictConfig(
        logs.config(os.environ.get("MOORAGE_LOG_LEVEL", "info"), os.environ.get("MOORAGE_LOG_FORMAT", "text"))
    )
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    asyncio.run(serve(FdChannel(socket.socket(fileno=int(sys.argv[1])))))


if __name__ == "__main__":
    main()
