"""What `tests/conftest.py` does to other tests, shown on some of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPPED_BY_MARK_BODY_AND_FIXTURE = """
import pytest
@pytest.mark.skip(reason="no tool")
def test_by_mark(): pass
def test_by_itself(): pytest.skip("no tool")
@pytest.fixture
def tool(): pytest.skip("no tool")
def test_by_its_fixture(tool): pass
def test_that_runs(): pass
"""
SKIPPED_AS_A_WHOLE = """
import pytest
pytest.skip("no tool", allow_module_level=True)
"""
RUNNING = """
import time, pytest
from pathlib import Path
running = Path(__file__).with_name("running")
"""
IN_COMPANY = """
@pytest.mark.parametrize("number", range(10))
def test_in_company(number):
    running.touch()
    time.sleep(0.03)
    running.unlink()
"""
ALONE = """
@pytest.mark.alone
@pytest.mark.parametrize("number", range(5))
def test_alone(number):
    for _ in range(20):
        assert not running.exists()
        time.sleep(0.001)
"""


def outcome(directory: Path, ci: str, *options: str, **modules: str) -> str:
    """What pytest says last of a run of these modules."""
    shutil.copy(CONFTEST, directory)
    for name, text in modules.items():
        (directory / f"test_{name}.py").write_text(text)
    (directory / "pytest.ini").write_text("[pytest]\nmarkers = alone\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "no:cacheprovider", *options, str(directory)],
        env={**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return re.sub(r" in .*", "", done.stdout.strip().rpartition("\n")[2])


@pytest.mark.parametrize("processes", ["0", "2"])
def test_in_ci_a_skip_is_a_failure(tmp_path: Path, processes: str) -> None:
    options = ("-n", processes, "--continue-on-collection-errors")
    skipping = {"some": SKIPPED_BY_MARK_BODY_AND_FIXTURE, "whole": SKIPPED_AS_A_WHOLE}
    assert outcome(tmp_path, "true", *options, **skipping) == "1 failed, 1 passed, 3 errors"


def test_a_test_marked_alone_has_no_company(tmp_path: Path) -> None:
    modules = {"some": RUNNING + IN_COMPANY, "others": RUNNING + ALONE}
    assert outcome(tmp_path, "", "-n", "2", "--dist", "loadfile", **modules) == "15 passed"
