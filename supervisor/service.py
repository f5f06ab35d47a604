"""The whole service: builds its parts, starts them, and stops them in the right order."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import zmq.asyncio

from proto.captures import OpenCapture
from proto.channels import EventPublisher, Responder
from proto.codec import Message
from proto.messages import AttachLink, Expose, OpenTunnel
from supervisor.announcer import Announcer
from supervisor.api_server import ApiServer
from supervisor.attach.http import HttpAttach
from supervisor.attach.kinds import ListenerSpec
from supervisor.attach.listener import Attachment, Host, Listener
from supervisor.attach.options import NO_OPTIONS, Options
from supervisor.attach.stdio import StdioListener
from supervisor.capture_file import CaptureFile
from supervisor.captures import Captures
from supervisor.children import Zygote
from supervisor.config import Settings
from supervisor.control import Control
from supervisor.endpoints import StreamEndpoint, TcpEndpoint, UnixEndpoint
from supervisor.errors import StartError
from supervisor.forwards.table import Forwards
from supervisor.forwards.tunnels import Tunnels
from supervisor.handover import Handover
from supervisor.networks import Network
from supervisor.notifications import Notifications
from supervisor.paths import check_socket_paths, lock_dir, prepare_private_dir, runtime_dir, state_dir
from supervisor.resolver import HostResolver, ResolverWatch
from supervisor.state import State
from supervisor.switch import Switch
from supervisor.uuid_macs import UuidMacs
from supervisor.vms import Vm, Vms, WorkerSettings
from supervisor.worker_messages import WorkerMessages

DEFAULT_API_PORT = 7878
PATIENCE = 3.0
"""s for each kind of child to end when asked."""

Listeners = list[tuple[Listener, Options]]

log = logging.getLogger(__name__)


class Service:
    """Everything the supervisor runs. `run` raises StartError or ConfigError when it cannot start."""

    def __init__(
        self,
        settings: Settings,
        zygote_command: Sequence[str] = (),
        *,
        has_successor: bool = True,
        on_loss: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`has_successor`: should this process be killed, the next one on its directories takes over the VMs; `on_loss`
        is told in gvproxy's words of each VM whose link ends."""
        self._settings = settings
        self._has_successor = has_successor
        self._on_loss = on_loss
        self._zygote_command = zygote_command
        is_root = os.geteuid() == 0
        self._runtime = runtime_dir(settings.runtime_dir, os.environ, is_root)
        self._state_dir = state_dir(settings.state_dir, os.environ, is_root)
        check_socket_paths(self._runtime)
        self.reason = ""
        """Why it ended by itself; empty: it was told to."""

    async def run(self, stop: asyncio.Event, announce: Callable[[str], None]) -> None:
        """Serve until `stop` is set; `announce` gets what a user should read once the service is ready."""
        async with AsyncExitStack() as stack:
            for directory in (self._runtime, self._state_dir):
                prepare_private_dir(directory)
                stack.callback(os.close, lock_dir(directory))
            notifications = Notifications(self._settings.notification)
            stack.push_async_callback(notifications.close, PATIENCE)
            state = State(self._state_dir / "moorage.db")
            stack.callback(state.close)
            try:
                listeners = self._bind_listeners(stack)
            except StartError:
                notifications.hypervisor_error()
                raise
            api = self._bind_api(stack)
            await self._start(stack, state, listeners, api, notifications, stop)
            notifications.ready()
            announce(_how_to_use([listener for listener, _ in listeners], api))
            await stop.wait()
            log.info("stopping")

    def _bind_listeners(self, stack: AsyncExitStack) -> Listeners:
        default = ListenerSpec("qemu", UnixEndpoint(str(self._runtime / "qemu.sock")))
        specs = (default,) if self._settings.listen is None else self._settings.listen
        listeners = []
        for spec in specs:
            listener = spec.open()
            stack.callback(listener.close)
            listeners.append((listener, spec.options))
        return listeners

    def _bind_api(self, stack: AsyncExitStack) -> ApiServer:
        endpoints = self._settings.api
        if endpoints is None:
            endpoints = (UnixEndpoint(str(self._runtime / "api.sock")), TcpEndpoint("127.0.0.1", DEFAULT_API_PORT))
        env = {"MOORAGE_RUNTIME_DIR": str(self._runtime), **self._logging_env()}
        api = ApiServer((*endpoints, *self._settings.services), self._runtime, env)
        stack.callback(api.close)
        return api

    async def _start(
        self,
        stack: AsyncExitStack,
        state: State,
        listeners: Listeners,
        api: ApiServer,
        notifications: Notifications,
        stop: asyncio.Event,
    ) -> None:
        """Start from the inside out, so that nobody talks to a part that is not there yet."""
        context = zmq.asyncio.Context()
        stack.callback(context.term)
        events = EventPublisher(context, self._endpoint(stack, "events.sock"))
        stack.callback(events.close)
        events.listen(notifications.on_event)

        async def on_worker_message(peer: bytes, message: Message) -> Message | None:
            return await worker_messages.handle(peer, message)

        workers_endpoint = self._endpoint(stack, "workers.sock")
        workers = Responder(context, workers_endpoint, on_worker_message)
        stack.push_async_callback(workers.close)
        zygote = Zygote(self._zygote_command)
        stack.push_async_callback(zygote.close, PATIENCE)

        async def on_change() -> None:
            captures.settle()
            await switch.settle()
            await forwards.settle()
            _stop_after_last(vms, listeners, stop)

        vms = Vms(zygote, workers, self._worker_settings(stack, workers_endpoint), events, on_change)
        resolver = ResolverWatch()
        networks = {
            name: Network(name, spec, state, vms.is_attached) for name, spec in self._settings.all_networks().items()
        }
        for network in networks.values():
            network.use_resolver(resolver.current)

        def find_vm(name: str, ip: str, meant: str) -> Vm | None:
            network = networks.get(name)
            if network is None:
                return None
            if not meant:
                return vms.get(network.holder(ip, time.time()))
            vm = vms.named(network, meant)
            return vm if vm is not None and network.holder(ip, time.time(), vm.id) == vm.id else None

        uuid_macs = UuidMacs(self._settings.vpnkit_uuid_macs, state)

        def find_address(name: str, host: str, meant: str) -> str:
            network = networks.get(name)
            vm = vms.named(network, meant) if network is not None and meant else None
            return network.address_of(host, time.time(), vm.id if vm is not None else "") if network is not None else ""

        forwards = Forwards(
            state,
            vms,
            find_vm,
            find_address,
            self._settings.forward_source,
            self._settings.forward_dual_stack,
            self._logging_env(),
        )
        stack.push_async_callback(forwards.close, PATIENCE)
        switch = Switch(vms)
        stack.push_async_callback(switch.close)
        stack.push_async_callback(vms.stop, PATIENCE)
        announcer = Announcer(vms.tell_networks)
        worker_messages = WorkerMessages(vms, forwards, switch, events, announcer)
        control = Responder(context, self._endpoint(stack, "control.sock"), Control(networks, vms, forwards).handle)
        stack.push_async_callback(control.close)
        let_in = functools.partial(self._attach, vms, stop, notifications)
        closed_at = api.endpoints[len(api.endpoints) - len(self._settings.services) :]
        attach = HttpAttach(networks, functools.partial(let_in, NO_OPTIONS), closed_at)
        captures = Captures(vms)
        self._take_connections(stack, attach, captures, Tunnels(forwards))
        workers.start()
        control.start()
        await zygote.start()
        await forwards.open_configured(
            Expose(forward.local, forward.remote, forward.protocol, forward.network, forward.vm)
            for forward in self._settings.forwards
        )
        await forwards.restore()
        if api.endpoints:
            await api.start()
            stack.push_async_callback(api.stop, PATIENCE)

        async def on_resolver_change(changed: HostResolver) -> None:
            for network in networks.values():
                network.use_resolver(changed)
            await vms.tell_networks()

        _keep_running(stack, resolver.watch(on_resolver_change), announcer.run())
        await zygote.wait_ready()
        for listener, options in listeners:
            network = networks[options.network]
            attach_vm = functools.partial(let_in, options, network)
            listener.start(Host(attach_vm, network.spec.mtu, uuid_macs.mac_of, notifications.hypervisor_error))

    def _attach(
        self,
        vms: Vms,
        stop: asyncio.Event,
        notifications: Notifications,
        options: Options,
        network: Network,
        attachment: Attachment,
    ) -> None:
        def on_closed(closed: asyncio.Future[str]) -> None:
            if stop.is_set():
                return
            peer = attachment.peer or attachment.listener
            reason = {"eof": "EOF"}.get(closed.result(), closed.result())
            loss = f"cannot receive packets from {peer}, disconnecting: {reason}"
            self._on_loss(loss)
            if options.end_with_vm:
                if attachment.kind == StdioListener.kind:  # no other VM can take its place
                    notifications.hypervisor_error()
                self.reason = loss
                stop.set()

        vm = vms.attach(network, attachment)
        if vm is not None:
            vm.closed.add_done_callback(on_closed)

    def _take_connections(
        self, stack: AsyncExitStack, attach: HttpAttach, captures: Captures, tunnels: Tunnels
    ) -> None:
        """What the API server hands over."""
        path = self._runtime / "handover.sock"
        stack.callback(path.unlink, missing_ok=True)
        stack.push_async_callback(captures.close)
        handover = Handover(path, {AttachLink: attach.take, OpenCapture: captures.take, OpenTunnel: tunnels.take})
        stack.push_async_callback(handover.close)

    def _worker_settings(self, stack: AsyncExitStack, control_address: str) -> WorkerSettings:
        file = None
        if self._settings.capture_file is not None:
            file = CaptureFile(self._settings.capture_file)
            stack.callback(file.close)
        return WorkerSettings(
            control_address, self._settings.log_level, self._settings.log_format, file, not self._has_successor
        )

    def _logging_env(self) -> dict[str, str]:
        """How children that are not workers learn what to log."""
        return {"MOORAGE_LOG_LEVEL": self._settings.log_level, "MOORAGE_LOG_FORMAT": self._settings.log_format}

    def _endpoint(self, stack: AsyncExitStack, name: str) -> str:
        """A ZeroMQ endpoint in the runtime directory, whose file goes when the service stops."""
        path = self._runtime / name
        stack.callback(path.unlink, missing_ok=True)
        return f"ipc://{path}"


def _keep_running(stack: AsyncExitStack, *works: Coroutine[Any, Any, None]) -> None:
    """Until the service stops."""
    for work in works:
        stack.callback(asyncio.get_running_loop().create_task(work).cancel)


def _stop_after_last(vms: Vms, listeners: Listeners, stop: asyncio.Event) -> None:
    """End a service that was started for one VM, on standard input and output, with that VM."""
    if listeners and not any(vms) and not any(listener.lasts for listener, _ in listeners):
        stop.set()


def _how_to_use(listeners: list[Listener], api: ApiServer) -> str:
    lines = ["Moorage is ready.", ""]
    for listener in listeners:
        lines += [f"Attach a {listener.title} guest by {listener.endpoint}:", f"  {listener.attach_hint()}"]
    lines += ["", "API: " + (", ".join(_api_url(endpoint) for endpoint in api.endpoints) or "none")]
    return "\n".join(lines)


def _api_url(endpoint: StreamEndpoint) -> str:
    return str(endpoint) if isinstance(endpoint, UnixEndpoint) else str(endpoint).replace("tcp://", "http://", 1)
