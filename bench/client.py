"""A program that prints lines while it runs: ``begin``, then one line of JSON, or else what went wrong."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Self


class Unmeasurable(Exception):
    """A figure that cannot be had; the message says why."""


class Client:
    """A context manager; the program is killed at its end."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._read = b""

    def expect_begin(self, timeout: float) -> None:
        """Wait for the line. Raises Unmeasurable with what came instead."""
        if (line := self._line(timeout)) != "begin":
            raise Unmeasurable(line)

    def report(self, timeout: float) -> dict[str, Any]:
        """Wait for the line of JSON. Raises Unmeasurable with what came instead."""
        line = self._line(timeout)
        try:
            found: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise Unmeasurable(line) from None
        return found

    def _line(self, timeout: float) -> str:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._read:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Unmeasurable(f"nothing said in {timeout:g} s")
            if not (data := os.read(descriptor, 65536)):
                raise Unmeasurable(f"ended with status {self._process.wait()}")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode(errors="replace")

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
