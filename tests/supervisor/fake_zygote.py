"""A zygote whose workers speak the supervisor's side for real, and lines of text instead of Ethernet on the link.

Started as ``python fake_zygote.py FD``. A test is the VM: it writes a command a line and reads one line back.

    lease MAC [IP]     a committed LeaseRequest      -> the address, or the failure's code
    seen MAC IP        GuestSeen                     -> ok
    spawn              what the worker was told      -> JSON
    network            the network as it knows it    -> JSON
    peers              the VMs it was told of        -> JSON
    guest              what its VM may call itself   -> JSON
    send N WORD        a datagram to peer N          -> ok, or the error
    heard N            a datagram of peer N          -> its word
    count N            set its counter "fake"        -> ok
    hangup             end its channel               -> ok
    farewell N         tell its last counters, and die
    crash, hang, close die; stop reading control; end the link as garbled

A forwarded TCP port answers each connection with ``vm_id forward_id`` and closes it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from dataclasses import asdict
from typing import Any

import zmq.asyncio

from proto.channels import Requester
from proto.errors import RequestFailed
from proto.fdpass import FdChannel
from proto.messages import (
    AddForward,
    Empty,
    Exited,
    GetStats,
    GuestSeen,
    Hello,
    LeaseRequest,
    LinkClosed,
    NotSpawned,
    RemoveForward,
    Shutdown,
    Spawn,
    Spawned,
    UpdateNetwork,
    WorkerStats,
    ZygoteReady,
)
from proto.switch import AddPeer, JoinSwitch, RemovePeer, SetGuest

FULL = "MOORAGE_TEST_FULL"
"""In the environment: while there is a file of this name, there is no room for another worker."""


class FakeWorker:
    def __init__(self, spawn: Spawn, link: socket.socket, channel: FdChannel) -> None:
        self.spawn = spawn
        self.network = spawn.network
        self.link = link
        self.channel = channel
        self.counters = {"fake": 0, "tcp.flows": 1}
        self.listeners: dict[int, asyncio.Server] = {}
        self.port_security: bool | None = None
        self.identity: tuple[str, tuple[str, ...]] = ("", ())
        self.peers: dict[int, AddPeer] = {}
        self.sockets: dict[int, socket.socket] = {}
        self.ended = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        context = zmq.asyncio.Context()
        name = self.spawn.vm_id
        self.requester = Requester(context, self.spawn.control_address, name.encode(), self.on_message)
        self.requester.start()
        await self.requester.notify(Hello(name, os.getpid()))
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self.take_descriptors()), loop.create_task(self.serve_link())]
        await self.ended.wait()
        await self.requester.close()
        context.term()

    async def on_message(self, message: Any) -> Any:
        match message:
            case GetStats():
                return WorkerStats(self.spawn.vm_id, self.counters)
            case UpdateNetwork(network):
                self.network = network
            case RemoveForward(forward_id):
                self.listeners.pop(forward_id).close()
            case SetGuest(mac, ips):
                self.identity = mac, ips
            case Shutdown():
                self.ended.set()
        return Empty()

    async def take_descriptors(self) -> None:
        while True:
            message, fds = await self.channel.arecv()
            match message:
                case AddForward():
                    await self.add_forward(message.forward_id, fds[0])
                case JoinSwitch(port_security):
                    self.port_security = port_security
                case AddPeer(number):
                    self.peers[number] = message
                    for fd in fds:
                        self.sockets[number] = socket.socket(fileno=fd)
                        self.sockets[number].setblocking(False)
                case RemovePeer(number):
                    del self.peers[number]
                    self.sockets.pop(number).close()
            await self.channel.asend(Empty())

    async def add_forward(self, forward_id: int, fd: int) -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(f"{self.spawn.vm_id} {forward_id}".encode())
            writer.close()

        self.listeners[forward_id] = await asyncio.start_server(answer, sock=socket.socket(fileno=fd))

    async def serve_link(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self.link)
        while line := await reader.readline():
            answer = await self.obey(*line.decode().split())
            writer.write(answer.encode() + b"\n")
        await self.end("eof", by_guest=True)

    async def end(self, reason: str, by_guest: bool) -> None:
        await self.requester.notify(LinkClosed(self.spawn.vm_id, reason, by_guest))
        self.ended.set()

    async def on_switch(self, command: str, *words: str) -> str:
        match command:
            case "peers":
                return json.dumps({peer.number: (peer.mac, peer.ips) for peer in self.peers.values()})
            case "guest":
                return json.dumps((*self.identity, self.port_security))
            case "heard":
                heard = await asyncio.get_running_loop().sock_recv(self.sockets[int(words[0])], 100)
                return heard.decode()
        try:
            self.sockets[int(words[0])].send(words[1].encode())
        except OSError as error:
            return str(error)
        return "ok"

    async def on_end(self, command: str, *words: str) -> None:
        match command:
            case "hangup":
                self.tasks[0].cancel()
                with socket.socket(fileno=os.dup(self.channel.fileno())) as channel:
                    channel.shutdown(socket.SHUT_RDWR)
            case "farewell":
                await self.requester.notify(WorkerStats(self.spawn.vm_id, {"fake": int(words[0])}))
                await self.end("eof", by_guest=True)
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                self.tasks[0].cancel()
                os.kill(os.getpid(), signal.SIGSTOP)
            case "close":
                await self.end("frame length 4294967295 is over the limit of 131072", by_guest=False)

    async def obey(self, command: str, *words: str) -> str:
        match command:
            case "lease":
                request = LeaseRequest(self.spawn.vm_id, words[0], "".join(words[1:]), commit=True)
                try:
                    return str((await self.requester.request(request)).ip)
                except RequestFailed as error:
                    return error.failure.code
            case "seen":
                await self.requester.notify(GuestSeen(self.spawn.vm_id, words[0], words[1]))
            case "spawn":
                return json.dumps(asdict(self.spawn), default=bytes.decode)
            case "network":
                return json.dumps(asdict(self.network))
            case "peers" | "guest" | "send" | "heard":
                return await self.on_switch(command, *words)
            case "count":
                self.counters["fake"] = int(words[0])
            case "hangup" | "farewell" | "crash" | "hang" | "close":
                await self.on_end(command, *words)
        return "ok"


def become_worker(spawn: Spawn, link: int, channel: int) -> None:
    async def main() -> None:
        sock = socket.socket(fileno=os.dup(link))
        await FakeWorker(spawn, sock, FdChannel(socket.socket(fileno=os.dup(channel)))).run()

    asyncio.run(main())


def reap(channel: FdChannel) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        channel.send(Exited(pid, os.waitstatus_to_exitcode(status)))


def main() -> None:
    channel = FdChannel(socket.socket(fileno=int(sys.argv[1])))
    # The handler runs between two system calls of this one thread; recv goes on afterwards.
    signal.signal(signal.SIGCHLD, lambda *_: reap(channel))
    channel.send(ZygoteReady())
    while True:
        try:
            message, fds = channel.recv()
        except EOFError:
            return
        if FULL in os.environ and os.path.exists(os.environ[FULL]):
            for fd in fds:
                os.close(fd)
            channel.send(NotSpawned(message.vm_id, errno.EAGAIN))
            continue
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            become_worker(message, *fds)
            os._exit(0)
        for fd in fds:
            os.close(fd)
        channel.send(Spawned(message.vm_id, pid))


if __name__ == "__main__":
    main()
