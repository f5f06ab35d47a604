import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import moorage


def test_version_prints_the_version() -> None:
    result = CliRunner().invoke(moorage, ["version"])
    assert (result.exit_code, result.output) == (0, f"moorage {metadata.version('moorage')}\n")


def test_help_names_the_commands() -> None:
    result = CliRunner().invoke(moorage, ["--help"])
    assert result.exit_code == 0
    assert "serve" in result.output


def test_an_unknown_command_ends_with_2() -> None:
    result = CliRunner().invoke(moorage, ["dance"])
    assert result.exit_code == 2
    assert "dance" in result.output


@pytest.mark.parametrize(
    ("command", "package", "option"),
    [
        ("serve", "supervisor", "--listen"),
        ("agent", "agent", "--stop-if-exist"),
        ("gvproxy", "supervisor", "Usage of gvproxy:"),
        ("gvforwarder", "agent", "Usage of gvforwarder:"),
    ],
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
    assert option in ended.stdout + ended.stderr
    assert "decoy" not in ended.stdout


@pytest.mark.parametrize("name", ["gvproxy", "gvforwarder"])
def test_under_a_name_of_gvproxys_it_is_that_program(tmp_path: Path, name: str) -> None:
    link = tmp_path / name
    link.symlink_to(Path(sys.executable).with_name("moorage"))
    ended = subprocess.run([link, "-version"], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"{name} version ")


def test_under_the_name_qemu_wrapper_it_is_that_program(tmp_path: Path) -> None:
    link = tmp_path / "qemu-wrapper"
    link.symlink_to(Path(sys.executable).with_name("moorage"))
    ended = subprocess.run([link, "/none", "qemu", "-h"], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (1, "moorage: cannot connect to /none: No such file or directory\n")
    ended = subprocess.run([link], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Usage: moorage qemu-wrapper [OPTIONS] SOCKET COMMAND...\n")


def test_gvproxys_arguments_reach_it_untouched() -> None:
    argv = [sys.executable, "-P", "-m", "cli", "gvproxy", "-listen=x", "-debug", "-version=0", "-nope"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("flag provided but not defined: -nope\nUsage of gvproxy:\n")
