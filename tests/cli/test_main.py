import subprocess
import sys
from importlib import metadata
from pathlib import Path

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


def test_serve_hands_its_arguments_to_the_supervisor_whatever_lies_around(tmp_path: Path) -> None:
    decoy = tmp_path / "supervisor"
    decoy.mkdir()
    (decoy / "__init__.py").touch()
    (decoy / "__main__.py").write_text("print('decoy')")
    command = [sys.executable, "-P", "-m", "cli", "serve", "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "--listen" in ended.stdout
    assert "decoy" not in ended.stdout
