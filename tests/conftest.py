"""What holds for every test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI") == "true"
GUEST_TOOLS = ("ip", "busybox", "qemu-system-x86_64", "cpio", "gcc", "curl", "ssh", "sshd")
GATE, MACHINE = Path(__file__), Path(__file__).parent
"""What the processes that run this checkout's tests lock: see `pytest_runtest_protocol`."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` waits until no other runs, and the others wait for it; before their time limits begin."""
    how = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with contextlib.ExitStack() as machine:
        # One that waits for the machine does it in the gate: those that come later must not go before it for ever.
        with _locked(GATE, fcntl.LOCK_EX):
            machine.enter_context(_locked(MACHINE, how))
        return (yield)


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have the descriptor too
    finally:
        os.close(descriptor)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that boots a guest needs root and some Debian packages; where they are missing it is skipped."""
    if item.get_closest_marker("guest") is None:
        return
    if os.geteuid() != 0:
        pytest.skip("a guest needs root: network namespaces and tap devices")
    missing = [tool for tool in GUEST_TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make packages)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be skipped for something missing: a skip is a failure."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which CI=true forbids: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which CI=true forbids: {report.longrepr}"
    return report
