"""The service definitions are accepted by what will read them."""

from __future__ import annotations

import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs the Debian package systemd")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "moorage.service").read_text()
    assert "ExecStart=/usr/bin/moorage serve" in unit
    installed = Path(sys.executable).with_name("moorage")
    (tmp_path / "moorage.service").write_text(unit.replace("/usr/bin/moorage", str(installed)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / "moorage.service")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_launchd_can_read_the_agent() -> None:
    agent = plistlib.loads((DEPLOY / "org.moorage.serve.plist").read_bytes())
    assert agent["Label"] == "org.moorage.serve"
    assert agent["ProgramArguments"][:2] == ["/bin/sh", "-c"]
    command = agent["ProgramArguments"][2]
    assert "exec moorage serve " in command
    subprocess.run(["/bin/sh", "-n", "-c", command], check=True, timeout=10)
