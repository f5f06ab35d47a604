"""What the distribution promises: its name, its command, its licence, its files."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_command_is_installed() -> None:
    (command,) = (entry for entry in distribution("moorage").entry_points if entry.group == "console_scripts")
    assert command.name == "moorage"
    assert callable(command.load())


def test_the_licence_is_apache_2() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_every_folder_of_a_package_is_a_package() -> None:
    missing = {
        str(folder.relative_to(ROOT))
        for top in ("proto", "supervisor", "worker", "api", "cli", "agent")
        for folder in {source.parent for pattern in ("*.py", "*.pyx") for source in (ROOT / top).rglob(pattern)}
        if not (folder / "__init__.py").exists()
    }
    assert not missing


@pytest.mark.parametrize(
    "script", [".ci/run", "scripts/install-test-packages", "scripts/fetch-guest-kernel", "scripts/build-agent"]
)
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


def test_every_debian_package_of_the_tests_has_a_reason() -> None:
    lines = (ROOT / "scripts" / "debian-packages.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert packages
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+ +\S.*", line) for line in packages)
