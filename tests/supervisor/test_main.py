"""``moorage serve`` as a user runs it."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.system

SERVE = [sys.executable, "-P", "-m", "cli", "serve"]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="moorage-") as made:
        yield Path(made)


def arguments(directory: Path) -> list[str]:
    return [
        *("--runtime-dir", str(directory / "run"), "--state-dir", str(directory / "state")),
        *("--api", f"unix://{directory}/api.sock", "--api", "tcp://127.0.0.1:0"),
    ]


@contextlib.contextmanager
def service(directory: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """The service, once it says that it is ready; stopped by SIGTERM."""
    with (directory / "log").open("a") as log:
        process = subprocess.Popen(
            [*SERVE, *arguments(directory), *more], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "Moorage is ready.\n", (directory / "log").read_text()
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def get(directory: Path, path: str) -> int:
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    connection.sock.connect(f"{directory}/api.sock")
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SERVE, *args], capture_output=True, text=True, timeout=20, check=False)


def test_it_says_how_to_attach_serves_its_api_and_leaves_nothing_behind(directory: Path) -> None:
    with service(directory) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(5)]
        assert (
            f"-netdev stream,id=net0,server=off,addr.type=unix,addr.path={directory}/run/qemu.sock "
            "-device virtio-net-pci,netdev=net0,mac=5a:94:ef:e4:0c:ee"
        ) in lines
        assert lines[-1].startswith(f"API: unix://{directory}/api.sock, http://127.0.0.1:")
        assert get(directory, "/services/forwarder/all") == 200
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not [path for path in directory.rglob("*") if path.is_socket()]
    assert "Traceback" not in (directory / "log").read_text()


def test_the_api_server_is_replaced_when_it_dies(directory: Path) -> None:
    with service(directory) as process:
        assert get(directory, "/v1/vms") == 200

        def arbiters() -> list[psutil.Process]:
            found = []
            for child in psutil.Process(process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it ends while we look
                    if "gunicorn" in " ".join(child.cmdline()):
                        found.append(child)
            return found

        (first,) = arbiters()
        first.kill()
        until(lambda: first not in (found := arbiters()) and len(found) == 1)
        assert get(directory, "/v1/vms") == 200


def test_a_killed_service_can_be_started_again_at_once(directory: Path) -> None:
    with service(directory) as process:
        assert get(directory, "/v1/vms") == 200
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    with service(directory):
        assert get(directory, "/v1/vms") == 200


def test_a_bad_flag_ends_with_2_and_names_it(directory: Path) -> None:
    for more, message in [
        (("--mtu", "1"), "--mtu: "),
        (("--listen", "telegraph=unix:///x"), "--listen: expected KIND=URL with KIND one of"),
        (("--no-such-flag",), "No such option"),
        (("--config", f"{directory}/none.yaml"), "none.yaml: cannot be read"),
        (("--runtime-dir", "/" + "x" * 100), "--runtime-dir: expected a path of at most"),
    ]:
        ended = run(*arguments(directory), *more)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


def test_an_address_in_use_ends_with_1_and_is_named(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        ended = run(*arguments(directory), "--listen", f"qemu={url}")
    assert ended.returncode == 1
    assert f"cannot listen on {url}: address already in use" in ended.stderr
    assert not [path for path in directory.rglob("*") if path.is_socket()]


def test_a_second_service_in_the_same_directory_ends_with_1(directory: Path) -> None:
    with service(directory):
        ended = run(*arguments(directory))
        assert ended.returncode == 1
        assert f"{directory}/run is in use by another moorage" in ended.stderr
        assert get(directory, "/v1/vms") == 200


def test_json_logs_are_one_object_a_line(directory: Path) -> None:
    with service(directory, "--log-format", "json"):
        assert get(directory, "/v1/vms") == 200
    lines = (directory / "log").read_text().splitlines()
    assert lines
    assert all(line.startswith('{"') and line.endswith("}") for line in lines), lines
