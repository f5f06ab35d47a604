"""What holds for every test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator

import pytest

IN_CI = os.environ.get("CI") == "true"
GUEST_TOOLS = ("ip", "busybox", "qemu-system-x86_64", "cpio", "gcc", "curl", "ssh", "sshd")


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
