"""What the system lets the service use, and what stands in the way of more."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

OPEN_FILES = 262_144
"""Descriptors: forwards and links here, guest flows in the workers, which inherit the limit."""
CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = re.compile(r"^\d+:(?P<controllers>[\w,]*):(?P<path>/.*)$", re.MULTILINE)


def raise_open_files() -> None:
    """As many descriptors as are allowed; a privileged process allows itself more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
            return
    limit = hard if hard != resource.RLIM_INFINITY else OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def open_files() -> int:
    """How many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def in_the_way(error: int | None) -> str:
    """Which limit a call ran into, and what raises it; for the operator."""
    if error == errno.EMFILE:
        return f"the service may have {open_files()} open files (systemd: LimitNOFILE=, else ulimit -n)"
    if error == errno.ENFILE:
        return "the system may have no more open files (sysctl fs.file-max)"
    if error == errno.EAGAIN:
        known = "; ".join(_on_processes(Path("/proc/self/cgroup")))
        return known or "the system may have no more processes (sysctl kernel.pid_max, kernel.threads-max)"
    if error in (errno.ENOMEM, errno.ENOBUFS):
        return "no memory is left (systemd: MemoryMax=, container: its memory limit)"
    return "the system says no more about it"


def _on_processes(own: Path) -> Iterator[str]:
    """The limits on processes that are set for us."""
    with contextlib.suppress(OSError):
        for match in _OWN_CGROUP.finditer(own.read_text()):
            controllers = match["controllers"].split(",")
            if controllers == [""] or "pids" in controllers:
                yield from _on_processes_of(CGROUPS / "pids" if "pids" in controllers else CGROUPS, match["path"])
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid():
        yield f"this user may have {soft} processes (systemd: LimitNPROC=, else ulimit -u)"


def _on_processes_of(hierarchy: Path, group: str) -> Iterator[str]:
    """Those of a control group and all it is in."""
    path = PurePosixPath(group)
    for each in (path, *path.parents):
        with contextlib.suppress(OSError):
            limit = (hierarchy / each.relative_to("/") / "pids.max").read_text().strip()
            now = (hierarchy / each.relative_to("/") / "pids.current").read_text().strip()
            if limit != "max":
                raises = "systemd: TasksMax=, container: --pids-limit"
                yield f"the control group {each} may have {limit} processes and has {now} ({raises})"
