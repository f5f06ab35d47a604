"""The real service, started as a user starts it, in a network namespace that plays the host.

`Service.stop` holds it to its promises: exit status 0, no process, no socket and no traceback left behind.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from proto.channels import BlockingRequester
from proto.messages import Stats, SumStats
from tests.guests.namespace import Namespace, NamespaceGuest, Stdio
from tests.guests.waiting import wait_for

MOORAGE = Path(sys.executable).with_name("moorage")
OTHER_LISTENERS = {"bess": "unixpacket", "vfkit": "unixgram", "qemu-dgram": "unix"}
"""Kinds of listeners besides QEMU's, and the scheme of their URLs."""
START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0


class Service:
    """``moorage serve`` with a listener of each kind, for QEMU on unix and TCP, and its API on a unix socket."""

    def __init__(self, host: Namespace, *arguments: str) -> None:
        self.host = host
        self.arguments = arguments
        self.directory = Path(tempfile.mkdtemp(prefix="moorage-"))  # short: a socket's path has 107 bytes at most
        self.runtime = self.directory / "run"
        self.log = self.directory / "log"
        self.link_path = self.directory / "vm.sock"
        self.api_path = self.directory / "api.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = f"MOORAGE_TEST_SERVICE={uuid.uuid4().hex}"

    @property
    def unix_url(self) -> str:
        """Where an agent connects over a unix socket."""
        return f"unix://{self.link_path}"

    @property
    def unix_netdev(self) -> str:
        """QEMU's -netdev, over a unix socket."""
        return f"stream,addr.type=unix,addr.path={self.link_path}"

    @property
    def tcp_netdev(self) -> str:
        """QEMU's -netdev, over TCP."""
        return f"socket,connect=127.0.0.1:{self.tcp_port}"

    @property
    def tcp_port(self) -> int:
        """Of QEMU's TCP listener, as the service told it when it started."""
        return int(re.findall(r"tcp://127\.0\.0\.1:(\d+):", self.log_text())[-1])

    def path(self, kind: str) -> Path:
        """The socket of a listener other than QEMU's."""
        return self.directory / f"{kind}.sock"

    def command(self) -> list[str]:
        """What a user would type."""
        return [
            *(str(MOORAGE), "serve", "--runtime-dir", str(self.runtime), "--state-dir", str(self.directory / "state")),
            *("--listen", f"qemu=unix://{self.link_path}", "--listen", "qemu=tcp://127.0.0.1:0"),
            *(f"--listen={kind}={scheme}://{self.path(kind)}" for kind, scheme in OTHER_LISTENERS.items()),
            *("--api", f"unix://{self.api_path}", *self.arguments),
        ]

    def start(self, stdio: Stdio | None = None) -> None:
        """Start, with these as standard input and output, and return when it says it is ready."""
        name, _, value = self._mark.partition("=")
        with self.log.open("ab") as log:
            began = log.tell()
            self.process = self.host.start(*self.command(), output=log, env={**os.environ, name: value}, stdio=stdio)
        wait_for(lambda: self._is_ready(began), START_TIMEOUT, "the service to say it is ready")

    def _is_ready(self, began: int) -> bool:
        text = self.log_text()
        assert self.process is not None
        assert self.process.poll() is None, f"the service ended with status {self.process.returncode}:\n{text}"
        return "API: " in text[began:]

    def stop(self) -> None:
        """SIGTERM; then see that nothing is left. Raises AssertionError where something is."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_TIMEOUT)
            wait_for(lambda: not self.processes(), 2.0, "the service's processes to end")
        except (subprocess.TimeoutExpired, AssertionError):
            left = self.processes()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"SIGTERM left these processes: {left}\n{self.log_text()}") from None
        text = self.log_text()
        assert status == 0, f"exit status {status}:\n{text}"
        assert "Traceback" not in text, text
        assert not self.sockets(), f"left behind: {self.sockets()}"

    def processes(self) -> dict[int, str]:
        """Live processes of the service, by a mark in their environment: pid and command line."""
        mark = self._mark.encode()
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def sockets(self) -> list[Path]:
        """Socket files in the service's directories."""
        return [path for path in self.directory.rglob("*") if path.is_socket()]

    def log_text(self) -> str:
        """Everything it printed."""
        return self.log.read_text(errors="replace")

    def request(self, method: str, path: str, body: object = None, timeout: float = 10.0) -> tuple[int, str]:
        """Ask the API over its unix socket; a `body` is sent as JSON, bytes as they are."""
        connection = _UnixConnection(self.api_path, timeout)
        try:
            connection.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET that must succeed."""
        status, text = self.request("GET", path)
        assert status == 200, f"GET {path}: {status} {text}"
        return json.loads(text)

    def counters(self) -> dict[str, int]:
        """The counters of all workers, those that have ended included."""
        requester = BlockingRequester(f"ipc://{self.runtime}/control.sock")
        try:
            answer = requester.request(SumStats())
        finally:
            requester.close()
        assert isinstance(answer, Stats)
        return answer.counters

    def expose(self, local: str, remote: str, protocol: str = "tcp") -> None:
        """Forward a port, as gvproxy's users do."""
        body = {"local": local, "remote": remote, "protocol": protocol}
        status, text = self.request("POST", "/services/forwarder/expose", body)
        assert status == 200, text

    @contextlib.contextmanager
    def exposed(self, local: str, remote: str, protocol: str = "tcp") -> Iterator[None]:
        """A forward for the length of a block."""
        self.expose(local, remote, protocol)
        try:
            yield
        finally:
            body = {"local": local, "protocol": protocol}
            assert self.request("POST", "/services/forwarder/unexpose", body)[0] == 200

    def vm(self, mac: str) -> dict[str, Any]:
        """The VM of this MAC in ``/v1/vms``, waited for."""
        return wait_for(lambda: self._find_vm(mac), 5.0, f"{mac} in /v1/vms")

    def _find_vm(self, mac: str) -> dict[str, Any] | None:
        answer = self.get("/v1/vms")
        vms: Sequence[dict[str, Any]] = answer["vms"] if isinstance(answer, dict) else answer
        return next((vm for vm in vms if vm["mac"] == mac), None)

    def close(self) -> None:
        """Stop, with all checks, and remove the directories."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Attach(Protocol):
    """Attaches one more guest, not yet configured, to a service."""

    def __call__(self, service: Service, mac: str = "") -> NamespaceGuest:
        """`mac` default: one that no other guest has."""
