"""AF_VSOCK itself: Moorage and a VM's agent inside one QEMU guest, whose kernel has vsock's loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_framing import ANSWER, QUESTION
from tests.guests.guest import Guest, random_sha256
from tests.guests.namespace import Namespace
from tests.guests.python_image import append_python, link_loader, python_command
from tests.guests.qemu import KERNEL, QemuGuest, build_initramfs

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

SIZE = 50_000_000
"""Bytes of the download, carried by two emulated Pythons."""
GATEWAY, HOST = "192.168.127.1", "192.168.127.254"
START_TIMEOUT = 120
"""s; emulated, a Python that loads all of Moorage takes some."""
EXPOSE = """
from proto.channels import BlockingRequester
from proto.messages import Expose
print(BlockingRequester("ipc://{directory}/run/control.sock").request(Expose("127.0.0.1:8090", "{ip}:81")))
"""
FOREIGN = """
from supervisor.attach.vsock import VsockEndpoint, VsockListener
VsockListener(VsockEndpoint(77, 10240))
"""


GVPROXY = f"""
import supervisor.children
supervisor.children.START_TIMEOUT = {START_TIMEOUT}  # the API server starts at the same time
from supervisor.gvproxy.__main__ import main
main()
"""
CLIENT = """
import socket
def ask(port, request):
    sock = socket.socket(socket.AF_VSOCK)
    sock.settimeout(60)
    sock.connect((1, port))
    sock.sendall(request)
    return sock.makefile("rb")
get = b"GET /services/forwarder/all HTTP/1.1\\r\\nHost: \\r\\nConnection: close\\r\\n\\r\\n"
connect = b"POST /connect HTTP/1.1\\r\\nHost: \\r\\nContent-Length: 0\\r\\n\\r\\n"
for port in (1025, 1026):
    print(ask(port, get).read().split(b"\\r\\n\\r\\n")[1])
print(ask(1026, connect).read(22))
question = bytes.fromhex("{question}")
print(ask(1025, connect + len(question).to_bytes(2, "little") + question).read({size}).hex())
"""


@pytest.fixture(scope="module")
def machine(host: Namespace, workshop: Path, probe: Path) -> Iterator[QemuGuest]:
    """A guest with Python in it."""
    if not KERNEL.exists():
        pytest.skip("no guest kernel in .cache/guest (make packages)")
    directory = workshop / "vsock"
    directory.mkdir()
    initramfs = build_initramfs(directory, probe, ("tun", "vsock_loopback"))
    image = directory / "image"
    append_python(initramfs, image)
    memory = ["-m", "1024"]
    guest = QemuGuest(directory, image, "user,restrict=on", "5a:94:ef:e4:0f:01", host, memory)
    with contextlib.closing(guest):
        guest.sh(link_loader())
        yield guest


def start(machine: Guest, program: str, log: str, word: str) -> None:
    """Run a Python program of Moorage's in the background until its log has that word."""
    machine.sh(f"{python_command()} {program} >{log} 2>&1 &")
    result = machine.attempt(f"until grep -q '{word}' {log}; do sleep 0.2; done", START_TIMEOUT)
    assert result.status == 0, machine.sh(f"cat {log}")


def test_a_vm_has_its_whole_network_over_af_vsock(machine: QemuGuest, probe: Path) -> None:
    directory = machine.sh("mktemp -d").strip()
    service, agent, www = (f"{directory}/{name}" for name in ("service", "agent", "www"))
    machine.sh(f"echo 'api: []' >{directory}/config")
    flags = f"--config {directory}/config --runtime-dir {directory}/run --state-dir {directory}/state"
    start(machine, f"-m supervisor {flags} --listen vsock=vsock://:1024", service, "API: none")
    start(machine, "-m agent --connect vsock://1:1024/connect --no-resolv-conf", agent, "tap0 has 192.168.127")
    assert "attached to default on vsock://:1024 (cid=1 " in machine.sh(f"cat {service}")
    ip = machine.sh("ip -o -4 addr show tap0").split()[3].partition("/")[0]
    assert "2 packets received" in machine.sh(f"ping -c 2 -W 5 {GATEWAY}")
    assert f"Address: {HOST}" in machine.sh(f"nslookup -type=a host.containers.internal {GATEWAY}")

    machine.sh(f"mkdir {www} && probe random {SIZE} 7 >{www}/data && httpd -p 127.0.0.1:80 -h {www}")
    machine.sh(f"httpd -p {ip}:81 -h {www} && echo hello >{www}/hello")
    fetched = machine.sh(f"wget -q -O - http://{HOST}/data | sha256sum", 90)
    assert fetched.split()[0] == random_sha256(probe, SIZE, 7)

    exposed = machine.attempt(f"{python_command()} -c '{EXPOSE.format(directory=directory, ip=ip)}'")
    assert exposed.status == 0, exposed.output + machine.sh(f"cat {service}")
    assert machine.sh("wget -q -O - http://127.0.0.1:8090/hello") == "hello\n"
    assert "Traceback" not in machine.sh(f"cat {service} {agent}")


def test_gvproxys_api_is_served_over_af_vsock(machine: QemuGuest) -> None:
    """Listen URLs (Linux): `vsock://[cid]:port[/ignored]`; control API incl. `/connect`, for `-services` without it"""
    directory = machine.sh("mktemp -d").strip()
    log = f"{directory}/log"
    flags = "-listen vsock://:1025/ignored -services vsock://1:1026 -ssh-port -1"
    start(machine, f"-c '{GVPROXY}' {flags}", log, "enabling services API. Listening vsock://1:1026")
    machine.sh(f"cat >{directory}/client <<'END'\n{CLIENT.format(question=QUESTION.hex(), size=2 + len(ANSWER))}END")
    asked = machine.attempt(f"{python_command()} {directory}/client", START_TIMEOUT)
    assert asked.status == 0, asked.output + machine.sh(f"cat {log}")
    answer = len(ANSWER).to_bytes(2, "little") + ANSWER
    assert asked.output.splitlines() == ["b'[]\\n'", "b'[]\\n'", "b'HTTP/1.1 404 Not Found'", answer.hex()]
    assert "attached to default on vsock://" in machine.sh(f"cat {log}")
    assert "Traceback" not in machine.sh(f"cat {log}")


def test_a_context_id_that_is_not_this_machines_is_named(machine: QemuGuest) -> None:
    listening = machine.attempt(f"{python_command()} -c '{FOREIGN}'")
    assert "cannot listen on vsock://77:10240: " in listening.output
    assert "77 is no context id of this machine" in listening.output
