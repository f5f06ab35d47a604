"""A guest that is a machine of its own: commands travel over its standard input and output, one line each.

``ID SECONDS BASE64(COMMAND)``; the answer is ``ID STATUS BASE64(OUTPUT)``. The kernel's console is another line, kept
in a file for failures.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.guests.guest import Guest, Result
from tests.guests.namespace import Namespace

BOOT_TIMEOUT = 60.0
ANSWER_MARGIN = 10.0
"""Seconds granted beyond the command's own limit: emulation is slow, and two cores are shared."""

COMMAND_LOOP = """
exec <>{device} >&0
echo ready
while read -r id seconds command; do
    echo "$command" | base64 -d >/tmp/command
    timeout -k 1 "$seconds" sh /tmp/command </dev/null >/tmp/output 2>&1
    echo "$id $? $(head -c 262144 /tmp/output | base64 | tr -d '\\n')"
done
"""
"""The end of an init script; `device` is what leads to the machine's standard input and output."""


class ConsoleGuest(Guest):
    """A running machine: one process."""

    lease_file = "/tmp/lease"

    def __init__(self, argv: Sequence[str], console: Path, mac: str, host: Namespace) -> None:
        """Boot. `console`: the file to which the machine writes its kernel's console, or its standard error goes."""
        self.mac = mac
        self._console = console
        self._serial = 0
        with console.open("ab") as errors:
            self.machine = subprocess.Popen(
                host.command(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            self._read_line(time.monotonic() + BOOT_TIMEOUT, "ready")
        except BaseException:
            self.close()
            raise

    def attempt(self, command: str, timeout: float = 30.0) -> Result:
        self._serial += 1
        seconds = max(1, round(timeout))
        request = f"{self._serial} {seconds} {base64.b64encode(command.encode()).decode()}\n"
        assert self.machine.stdin is not None
        os.write(self.machine.stdin.fileno(), request.encode())
        answer = self._read_line(time.monotonic() + seconds + ANSWER_MARGIN, str(self._serial))
        _, status, output = (answer + " ").split(" ", 2)
        return Result(int(status), base64.b64decode(output).decode(errors="replace"))

    def _read_line(self, deadline: float, beginning: str) -> str:
        """The next whole line that begins with this word; what came before it is dropped."""
        assert self.machine.stdout is not None
        descriptor = self.machine.stdout.fileno()
        received = b""
        while True:
            line, newline, rest = received.partition(b"\n")
            if newline:
                text = line.decode(errors="replace").strip()
                if text.split(" ", 1)[0] == beginning:
                    return text
                received = rest
                continue
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(descriptor, 65536) if ready else b""
            if not more:
                console = self._console.read_text(errors="replace")[-4000:]
                why = "the machine ended" if ready else "no answer in time"
                raise AssertionError(f"guest: {why}, waiting for {beginning!r}\n{received[-500:]!r}\n{console}")
            received += more

    def close(self) -> None:
        """Pull the plug: the machine, and the processes of which it is made."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.machine.pid, signal.SIGKILL)
        self.machine.communicate()
