"""An API in front of a supervisor that answers from a table, over the real control socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio
from flask.testing import FlaskClient

from api import create_app
from api.supervisor_client import EXTENSION
from proto import messages
from proto.channels import Responder
from proto.codec import Message
from proto.errors import RequestFailed

VM = messages.Vm(
    id="vm-1",
    network="default",
    link="qemu",
    listener="unix:///run/moorage/qemu.sock",
    peer="uid=1000 pid=4242",
    worker_pid=4711,
    attached_at=1_700_000_000.0,
    restarts=1,
    mac="5a:94:ef:e4:0c:ee",
    ip="192.168.127.2",
    counters={"link.rx_bytes": 1000, "link.tx_bytes": 2000, "tcp.flows": 3, "udp.flows": 4, "tcp.retransmits": 5},
    memory=7_000_000,
    cpu_seconds=1.5,
    open_files=12,
)
NETWORK = messages.NetworkInfo(
    name="default",
    subnet="192.168.127.0/24",
    gateway_ip="192.168.127.1",
    gateway_mac="5a:94:ef:e4:0c:dd",
    host_ip="192.168.127.254",
    mtu=1500,
    mode="shared",
    port_security=True,
    macs={VM.mac: VM.id},
)
FORWARD = messages.Forward(":6443", "192.168.127.2:6443", bound="0.0.0.0:6443", vm_id="vm-1")


@dataclass(slots=True)
class CannedSupervisor:
    """Answers each class of question with what `answers` holds for it; a `Failure` there refuses."""

    answers: dict[type, Message | Callable[[Any], Message]] = field(default_factory=dict)
    asked: list[Message] = field(default_factory=list)

    async def handle(self, _peer: bytes, question: Message) -> Message:
        """The responder's handler."""
        self.asked.append(question)
        answer = self.answers.get(type(question))
        if answer is None:
            raise RequestFailed.because("bad-request", f"no answer to {type(question).__name__} in this test")
        return answer

    def refuse(self, question: type, code: Any, message: str, detail: str = "") -> None:
        """Answer that class of question with a `Failure`."""
        self.answers[question] = messages.Failure(code, message, detail)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[CannedSupervisor]:
    """A supervisor with one VM and one forward."""
    canned = CannedSupervisor(
        {
            messages.ListVms: messages.Vms((VM,)),
            messages.ListForwards: messages.Forwards((FORWARD,)),
            messages.Expose: FORWARD,
            messages.Unexpose: messages.Empty(),
            messages.ListNetworks: messages.Networks((NETWORK,)),
            messages.AddZone: messages.Empty(),
            messages.ListZones: messages.Zones(()),
            messages.SumStats: messages.Stats(VM.counters, 1),
            messages.ListLeases: messages.Leases(
                (messages.Lease("default", "192.168.127.2", VM.mac, 1_900_000_000.0, "guest", "vm-1"),),
                "192.168.127.1",
                "5a:94:ef:e4:0c:dd",
            ),
        }
    )
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        with zmq.asyncio.Context() as context:
            responder = Responder(context, f"ipc://{tmp_path}/control.sock", canned.handle)
            responder.start()
            ready.set()
            await stop.wait()
            await responder.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield canned
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    """A client of the application on this test's runtime directory."""
    app = create_app(str(tmp_path))
    yield app.test_client()
    app.extensions[EXTENSION].close()
