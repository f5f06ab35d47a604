"""The real ``podman machine`` (Debian's 4.3) with Moorage in gvproxy's place: issue "must run ... unchanged".

It starts gvproxy with ``-listen-qemu -pid-file -ssh-port -forward-sock -forward-dest -forward-user -forward-identity``,
tries for 3 s to connect to the QEMU socket, hands that to QEMU as descriptor 3, and has QEMU bind its monitor to the
same path.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator

import psutil
import pytest

from tests.guests.guest import build_probe
from tests.guests.host import make_host
from tests.guests.namespace import Namespace
from tests.guests.podman import TOOLS, VM, Podman, build_disk
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        yield host


@pytest.fixture(scope="module")
def podman(host: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """With a machine that runs."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make packages)")
    directory = tmp_path_factory.mktemp("machine")
    disk = build_disk(directory, build_probe(directory))
    with contextlib.closing(Podman(host)) as podman:
        options = ("--memory", "256", "--disk-size", "1", "--timezone", "UTC", "--image-path", str(disk))
        podman.run("machine", "init", *options, VM)
        podman.start()
        yield podman
        podman.run("machine", "stop", VM)
        podman.run("machine", "rm", "--force", VM)


def proxy(podman: Podman) -> psutil.Process:
    return psutil.Process(int(podman.proxy_pid.read_text()))


def test_it_reaches_the_vm_over_ssh(podman: Podman) -> None:
    """-ssh-port N: forwards 127.0.0.1:N to deviceIP:22"""
    assert podman.ssh("hostname; id -un; ip -o -4 address show eth0").split()[:2] == [VM, "core"]
    assert "192.168.127.2/24" in podman.ssh("ip -o -4 address show eth0")


def test_its_api_is_reached_through_the_forwarded_socket(podman: Podman, host: Namespace) -> None:
    """-forward-sock, -forward-dest, -forward-user, -forward-identity: host unix socket => guest unix socket over SSH"""
    for path in ("/_ping", "/v4.3.1/libpod/_ping"):
        answer = host.run("curl", "-sS", "--unix-socket", str(podman.api), f"http://d{path}")
        assert (answer.returncode, answer.stdout) == (0, "OK"), answer.stderr
    assert podman.run("--remote", "--url", f"unix://{podman.api}", "volume", "ls", "--quiet") == ""


def test_its_api_is_reached_by_its_own_ssh_client(podman: Podman) -> None:
    """Go's SSH client through the SSH port, to the same socket in the VM."""
    assert podman.run("--remote", "--connection", VM, "volume", "ls", "--quiet") == ""


def test_the_vm_publishes_a_port_as_podman_does_for_a_container(podman: Podman, host: Namespace) -> None:
    """http://gateway.containers.internal/services/forwarder/expose, from inside the VM"""
    url = "http://gateway.containers.internal/services/forwarder"
    body = '{"local":":8022","remote":"192.168.127.2:22","protocol":"tcp"}'
    podman.ssh(f"wget -q -O - --post-data '{body}' {url}/expose")
    with host.entered(), socket.create_connection(("127.0.0.1", 8022), 10) as client:
        assert client.recv(100).startswith(b"SSH-2.0-")
    podman.ssh(f"wget -q -O - --post-data '{body}' {url}/unexpose")
    assert body not in podman.ssh(f"wget -q -O - {url}/all")
    with host.entered(), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 8022), 10)


def test_a_machine_that_was_stopped_starts_again(podman: Podman) -> None:
    """`podman machine stop` kills gvproxy and removes pid file and QEMU's socket; ports and files are free again"""
    before = proxy(podman)
    podman.run("machine", "stop", VM)
    wait_for(lambda: not before.is_running(), 10.0, "the end of gvproxy")
    wait_for(lambda: not list(podman.temporary.iterdir()), 10.0, "the end of its directory")
    assert not podman.proxy_pid.exists()
    podman.start()
    assert podman.ssh("id -un") == "core\n"


def test_a_vm_that_switches_itself_off_ends_gvproxy(podman: Podman) -> None:
    """QEMU disconnect ends the whole process"""
    before = proxy(podman)
    podman.attempt("machine", "ssh", "--username", "root", VM, "poweroff -f")
    wait_for(lambda: not before.is_running(), 20.0, "the end of gvproxy")
    assert not podman.proxy_pid.exists()
    assert not podman.api.exists()
    podman.start()
    assert podman.ssh("id -un") == "core\n"
