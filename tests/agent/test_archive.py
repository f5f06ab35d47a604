"""The agent as one file, run by a Python that sees nothing else."""

from __future__ import annotations

import signal
import socket
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.guests.namespace import Namespace
from tests.guests.waiting import wait_for

ROOT = Path(__file__).parents[2]
ISOLATED = ("python3", "-S", "-E", "-I")
MAC = "5a:94:ef:e4:0c:ee"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dist") / "moorage-agent.pyz"
    subprocess.run([ROOT / "scripts" / "build-agent", path], check=True, timeout=60)
    return path


def test_it_holds_the_agent_and_what_it_needs_and_no_more(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        modules = {name for name in opened.namelist() if name.endswith(".py")}
    agent = {f"agent/{path.name}" for path in (ROOT / "agent").glob("*.py")}
    assert modules == agent | {"__main__.py", "proto/__init__.py", "proto/framing.py", "proto/go_flags.py"}


def test_it_is_a_program(archive: Path) -> None:
    shown = subprocess.run([archive, "--help"], capture_output=True, text=True, timeout=20, check=False)
    assert shown.returncode == 0
    assert "--connect URL" in shown.stdout


def test_its_exit_status_is_the_agents(archive: Path) -> None:
    for arguments, status in ((["--stop-if-exist", "lo"], 0), (["--connect", "nonsense"], 2)):
        argv = [*ISOLATED, str(archive), *arguments]
        assert subprocess.run(argv, stderr=subprocess.DEVNULL, timeout=20, check=False).returncode == status


def test_under_the_name_gvforwarder_it_is_gvforwarder(archive: Path, tmp_path: Path) -> None:
    """`gvforwarder -version`; and with the name alone, whatever lies behind it"""
    link = tmp_path / "gvforwarder"
    link.symlink_to(archive)
    shown = subprocess.run([*ISOLATED, str(link), "-version"], capture_output=True, text=True, timeout=20, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"gvforwarder version v{metadata.version('moorage')} (Moorage)\n"


@pytest.mark.guest
def test_it_joins_a_namespace(archive: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "s", tmp_path / "log"
    with Namespace("archive") as namespace, socket.socket(socket.AF_UNIX) as listener, log.open("wb") as output:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        argv = [*ISOLATED, str(archive), "--connect", f"unix://{path}", "--mac", MAC, "--no-resolv-conf"]
        agent = namespace.start(*argv, output=output)
        link, _ = listener.accept()
        with link:
            wait_for(lambda: f"link/ether {MAC}" in namespace.run("ip", "link", "show", "tap0").stdout, 5, "the device")
            link.settimeout(5)
            discover = link.recv(2048)
            assert bytes.fromhex(MAC.replace(":", "")) in discover
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(5) == 0, log.read_text()
