"""Where a figure was taken: machine, kernel, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.programs import LIBSLIRP_HEADERS

ROOT = Path(__file__).parents[1]
PACKAGES = ("passt", "slirp4netns", "libslirp0", "iperf3")
"""Debian's packages whose versions matter."""


def describe() -> dict[str, object]:
    """Everything, for the JSON file."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "modified": bool(_said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {package: _package_version(package) for package in PACKAGES},
        "libslirp_headers": LIBSLIRP_HEADERS.exists(),
    }


def cpu_model(cpuinfo: str) -> str:
    """From the text of /proc/cpuinfo; ``unknown`` where it does not say."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else "unknown"


def summary(machine: dict[str, object]) -> str:
    """In a line, for people."""
    load = machine["load_average"]
    assert isinstance(load, Sequence)
    return f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, load {load[0]} at the start"


def _package_version(name: str) -> str:
    return _said("dpkg-query", "--show", "--showformat=${Version}", name)


def _said(*argv: str) -> str:
    """What a program prints; empty where it cannot run."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
