"""``moorage gvproxy`` as gvproxy's users start it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from tests.guests.bare import BareVm
from tests.guests.namespace import Namespace, Stdio
from tests.guests.service import MOORAGE
from tests.guests.waiting import wait_for

READY = "waiting for clients..."
START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
MAC = "5a:94:ef:e4:0c:ee"
"""That gvproxy keeps the first address for."""


class Gvproxy:
    """One process, in a namespace that plays the host; its sockets and files in a directory."""

    def __init__(
        self, host: Namespace, directory: Path, *flags: str, name: str = "", stdio: Stdio | None = None
    ) -> None:
        """`stdio`: its standard input and output, for ``-listen-stdio``."""
        self.directory = directory
        self.api = directory / f"{name}api.sock"
        self.qemu = directory / f"{name}qemu.sock"
        self.log = directory / f"{name}log"
        self.flags = [flag.replace("DIR", str(directory)) for flag in flags]
        with self.log.open("wb") as log:
            self.process = host.start(str(MOORAGE), "gvproxy", *self.flags, output=log, stdio=stdio)

    def __enter__(self) -> Self:
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            assert self.stop() == 0, self.log_text()
        assert "Traceback" not in self.log_text(), self.log_text()

    def wait_ready(self) -> None:
        """Until VMs can attach."""
        wait_for(self._is_ready, START_TIMEOUT, "gvproxy to be ready")

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"it ended with status {self.process.returncode}:\n{self.log_text()}"
        return READY in self.log_text()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(signum)
        return self.ended()

    def ended(self) -> int:
        """The exit status of a process that ends."""
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it does not end:\n{self.log_text()}") from None

    def log_text(self) -> str:
        """What it wrote on standard error."""
        return self.log.read_text()

    def attach(self, mac: str = MAC) -> BareVm:
        """A VM on the QEMU socket that has asked for an address."""
        vm = BareVm(self.qemu, mac, timeout=15)
        vm.discover()
        return vm

    def request(
        self, method: str, path: str, body: object = None, sock: Path | None = None, kind: int = socket.SOCK_STREAM
    ) -> tuple[int, str]:
        """Ask the API. `kind`: the type of its unix socket."""
        connection = http.client.HTTPConnection("localhost", timeout=15)
        connection.sock = socket.socket(socket.AF_UNIX, kind)
        connection.sock.settimeout(15)
        try:
            connection.sock.connect(str(sock or self.api))
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET that must succeed."""
        status, text = self.request("GET", path)
        assert status == 200, text
        return json.loads(text)


class Notified:
    """The other end of ``-notification``: the lines that came, one for each connection."""

    def __init__(self, path: Path) -> None:
        self.messages: list[dict[str, str]] = []
        self.raw: list[bytes] = []
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen(200)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                sent = stream.read()
            self.raw.append(sent)
            self.messages.append(json.loads(sent))

    def wait(self, count: int) -> list[dict[str, str]]:
        """The first so many."""
        wait_for(lambda: len(self.messages) >= count, 15.0, f"{count} notifications, not {self.messages}")
        return self.messages[:count]

    def close(self) -> None:
        """Listen no more."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(5)
