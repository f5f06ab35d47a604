"""What processes cost: CPU time and memory, from /proc (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """`root` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time the processes have used; one that has ended counts nothing."""
    return sum(sum(user_and_system(pid)) for pid in pids)


def user_and_system(pid: int) -> tuple[float, float]:
    """CPU seconds a process has used in its own code, and in the kernel for it; zeros: no such process."""
    return _times(_stat(pid))


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process, by its id; empty: no such process."""
    try:
        threads = sorted(entry.name for entry in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return {}
    return {thread: sum(_times(_fields(Path(f"/proc/{pid}/task/{thread}/stat")))) for thread in threads}


def idle_seconds() -> float:
    """What all processors together have been idle since the start."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / TICKS_PER_SECOND


def pss(pid: int) -> int:
    """Proportional set size in bytes: a page shared by n processes counts for one nth. 0: no such process."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended (a zombie has)."""
    return _stat(pid)[:1] not in ([], ["Z"])


def _times(fields: list[str]) -> tuple[float, float]:
    return (int(fields[11]) / TICKS_PER_SECOND, int(fields[12]) / TICKS_PER_SECOND) if fields else (0.0, 0.0)


def _stat(pid: int) -> list[str]:
    return _fields(Path(f"/proc/{pid}/stat"))


def _fields(path: Path) -> list[str]:
    """What is after the name: state, parent, ...; empty: no such process or thread."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []
