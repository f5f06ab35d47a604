"""The service definitions are accepted by what will read them."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.options import parse_options

DEPLOY = Path(__file__).parents[2] / "deploy"


systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs the Debian package systemd")


def verify(unit: Path) -> tuple[int, str, str]:
    """What systemd has to say about a unit."""
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return verified.returncode, verified.stdout, verified.stderr


@systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "moorage.service").read_text()
    assert "ExecStart=/usr/bin/moorage serve" in unit
    installed = Path(sys.executable).with_name("moorage")
    (tmp_path / "moorage.service").write_text(unit.replace("/usr/bin/moorage", str(installed)))
    assert verify(tmp_path / "moorage.service") == (0, "", "")


@systemd
def test_systemd_finds_nothing_wrong_with_the_agents_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "agent" / "moorage-agent.service").read_text()
    installed = tmp_path / "moorage-agent"
    installed.touch(0o755)
    for program in ("/usr/local/bin/moorage-agent", "/sbin/modprobe"):
        assert f"{program} " in unit
        unit = unit.replace(f"{program} ", f"{installed} ")
    (tmp_path / "moorage-agent.service").write_text(unit)
    assert verify(tmp_path / "moorage-agent.service") == (0, "", "")


def test_the_agents_unit_gives_it_arguments_that_it_takes() -> None:
    unit = (DEPLOY / "agent" / "moorage-agent.service").read_text()
    (arguments,) = re.findall(r"^ExecStart=\S+ (.*)$", unit, re.MULTILINE)
    assert parse_options(arguments.split()).stop_if_exist == ["eth0", "ens3", "enp0s1"]


def test_the_agents_container_is_made_of_what_make_builds() -> None:
    containerfile = (DEPLOY / "agent" / "Containerfile").read_text()
    (source,) = re.findall(r"^COPY (\S+) ", containerfile, re.MULTILINE)
    assert f"\n{source}:" in (DEPLOY.parent / "Makefile").read_text()


def test_launchd_can_read_the_agent() -> None:
    agent = plistlib.loads((DEPLOY / "org.moorage.serve.plist").read_bytes())
    assert agent["Label"] == "org.moorage.serve"
    assert agent["ProgramArguments"][:2] == ["/bin/sh", "-c"]
    command = agent["ProgramArguments"][2]
    assert "exec moorage serve " in command
    subprocess.run(["/bin/sh", "-n", "-c", command], check=True, timeout=10)
