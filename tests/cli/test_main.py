import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main


def test_version_prints_the_version() -> None:
    result = CliRunner().invoke(main, ["version"])
    assert (result.exit_code, result.output) == (0, f"moorage {metadata.version('moorage')}\n")


def test_help_names_the_commands() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "serve" in result.output


def test_an_unknown_command_ends_with_2() -> None:
    result = CliRunner().invoke(main, ["dance"])
    assert result.exit_code == 2
    assert "dance" in result.output


@pytest.mark.parametrize(
    ("command", "package", "option"), [("serve", "supervisor", "--listen"), ("agent", "agent", "--stop-if-exist")]
)
def test_a_command_hands_its_arguments_to_its_package_whatever_lies_around(
    command: str, package: str, option: str, tmp_path: Path
) -> None:
    decoy = tmp_path / package
    decoy.mkdir()
    (decoy / "__init__.py").touch()
    (decoy / "__main__.py").write_text("print('decoy')")
    argv = [sys.executable, "-P", "-m", "cli", command, "--help"]
    ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 0, ended.stderr
    assert option in ended.stdout
    assert "decoy" not in ended.stdout
