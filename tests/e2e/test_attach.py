"""Every way to attach that begins with a handshake, or needs none: a guest's whole network over each."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.guests.guest import Guest
from tests.guests.namespace import Namespace, NamespaceGuest, Stdio
from tests.guests.qemu import QemuGuest
from tests.guests.servers import FileServer, Names
from tests.guests.service import MOORAGE, Service
from tests.guests.waiting import wait_for

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

HOST = "192.168.127.254"
SIZE = 50_000_000
"""Bytes of the download."""
MAC = "5a:94:ef:e4:0e:01"
UUID = "c3d68012-0208-11ea-9fd7-f2189899ab08"


class Bed:
    """One service, which a test starts with a listener, and guests attached to it."""

    def __init__(
        self,
        host: Namespace,
        workshop: Path,
        probe: Path,
        initramfs: Callable[[], Path],
        stack: contextlib.ExitStack,
    ) -> None:
        self.host = host
        self._workshop, self._probe, self._initramfs, self._stack = workshop, probe, initramfs, stack
        self.service = Service(host)
        self.directory = self.service.directory
        stack.callback(self.service.close)

    def serve(self, *listen: str, stdio: Stdio | None = None) -> None:
        self.service.arguments = tuple(word for url in listen for word in ("--listen", url))
        self.service.start(stdio)

    def attach(self, url: str, mac: str = MAC, stdio: Stdio | None = None, framing: str = "") -> NamespaceGuest:
        guest = NamespaceGuest(self._workshop, url, mac, self._probe, self.host, stdio, framing)
        self._stack.enter_context(contextlib.closing(guest))
        guest.configure()
        return guest

    def boot(self, netdev: str, wrapper: Sequence[str]) -> QemuGuest:
        """A QEMU that another command becomes."""
        guest = QemuGuest(self._workshop, self._initramfs(), netdev, MAC, self.host, wrapper=wrapper)
        self._stack.enter_context(contextlib.closing(guest))
        guest.configure()
        return guest


@pytest.fixture
def bed(request: pytest.FixtureRequest, host: Namespace, names: Names, workshop: Path, probe: Path) -> Iterator[Bed]:
    with contextlib.ExitStack() as stack:
        yield Bed(host, workshop, probe, lambda: request.getfixturevalue("initramfs"), stack)


def connect(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    link.connect(str(path))
    return link


def hyperkit_hands(path: Path, uuid: str = UUID) -> tuple[str, socket.socket]:
    """VPNKit's handshake, as HyperKit does it: the MAC it is given, and the link."""
    link = connect(path)
    init = b"VMN3T" + struct.pack("<I", 22) + b"0" * 40
    link.sendall(init)
    assert link.recv(49, socket.MSG_WAITALL) == init
    link.sendall(b"\x01" + uuid.encode() + bytes(4))
    kind, mtu, longest, mac = struct.unpack_from("<BHH6s", link.recv(258, socket.MSG_WAITALL))
    assert (kind, mtu, longest) == (1, 1500, 1514)
    return mac.hex(":"), link


def attach_hyperkit(bed: Bed) -> NamespaceGuest:
    mac, link = hyperkit_hands(bed.directory / "h")
    with link:
        link.settimeout(None)
        return bed.attach("stdio:", mac, (link.fileno(), link.fileno()))


def over_hyperkit(bed: Bed) -> NamespaceGuest:
    bed.serve(f"hyperkit=unix://{bed.directory}/h")
    return attach_hyperkit(bed)


def over_vsock(bed: Bed) -> NamespaceGuest:
    """The agent's own request, on the socket that HyperKit would name so."""
    bed.serve(f"vsock=vsock://null:1024{bed.directory}")
    return bed.attach(f"unix://{bed.directory}/00000002.00000400/connect")


def over_vsock_with_connect(bed: Bed) -> NamespaceGuest:
    """As to a hypervisor's own socket, the request in the same breath as the line before it and a frame behind it."""
    bed.serve(f"vsock=vsock://null:1024{bed.directory}/v")
    with connect(bed.directory / "v") as link:
        link.sendall(b"CONNECT 1024\nPOST /connect HTTP/1.1\r\nHost: vm\r\n\r\n" + struct.pack("<H", 14) + bytes(14))
        assert link.recv(64) == b"OK 1024\n"
        link.settimeout(None)
        return bed.attach("stdio:", MAC, (link.fileno(), link.fileno()))


def over_http(bed: Bed) -> NamespaceGuest:
    bed.serve()
    return bed.attach(f"unix://{bed.service.api_path}/connect")


def over_http_with_qemus_framing(bed: Bed) -> NamespaceGuest:
    """The request and the beginning of a frame in one breath, its rest after it."""
    bed.serve()
    with connect(bed.service.api_path) as link:
        link.sendall(b"POST /connect?framing=qemu HTTP/1.1\r\nHost: vm\r\n\r\n" + struct.pack("!I", 20) + bytes(7))
        wait_for(lambda: bed.service.get("/v1/vms")["vms"], 5.0, "the VM")
        link.sendall(bytes(13))
        link.settimeout(None)
        return bed.attach("stdio:", MAC, (link.fileno(), link.fileno()), "stream32")


def over_stdio(bed: Bed) -> NamespaceGuest:
    to_service, from_agent = os.pipe()
    to_agent, from_service = os.pipe()
    try:
        bed.serve("stdio=", stdio=(to_service, from_service))
        return bed.attach("stdio:", MAC, (to_agent, from_agent))
    finally:
        for fd in (to_service, from_service, to_agent, from_agent):
            os.close(fd)


def over_qemu_wrapper(bed: Bed) -> QemuGuest:
    bed.serve()
    return bed.boot("socket,fd=3", [str(MOORAGE), "qemu-wrapper", str(bed.service.link_path)])


WAYS: dict[str, Callable[[Bed], Guest]] = {
    "qemu-wrapper": over_qemu_wrapper,
    "hyperkit": over_hyperkit,
    "vsock": over_vsock,
    "vsock-connect": over_vsock_with_connect,
    "http": over_http,
    "http-qemu": over_http_with_qemus_framing,
    "stdio": over_stdio,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_has_its_whole_network(way: str, bed: Bed, files: FileServer) -> None:
    guest = WAYS[way](bed)
    assert guest.lease.ip.startswith("192.168.127.")
    assert "Address: 192.0.2.10" in guest.sh("busybox nslookup -type=a www.example.test")
    url = f"http://{HOST}:{files.port}/data?size={SIZE}"
    assert guest.sh(f"busybox wget -q -O - '{url}' | busybox sha256sum", 60).split()[0] == files.sha256(SIZE)
    guest.sh(f"d=$(mktemp -d) && echo hello from {way} >$d/index.html && busybox httpd -p 80 -h $d")
    bed.service.expose("127.0.0.1:8090", f"{guest.lease.ip}:80")
    fetched = bed.host.run("curl", "-sS", "--max-time", "10", "http://127.0.0.1:8090/")
    assert fetched.stdout == f"hello from {way}\n", fetched.stderr
    assert bed.service.vm(guest.mac)["link"] == way.partition("-")[0]


def test_a_worker_that_dies_is_replaced_on_two_pipes(bed: Bed) -> None:
    guest = over_stdio(bed)
    worker = bed.service.vm(guest.mac)["worker_pid"]
    os.kill(worker, 9)
    wait_for(lambda: bed.service.vm(guest.mac)["worker_pid"] not in (worker, 0), 5.0, "another worker")
    assert "1 packets received" in guest.sh("busybox ping -c 1 -W 5 192.168.127.1")


def test_a_vm_with_the_same_uuid_is_the_same_vm_also_after_a_restart(bed: Bed) -> None:
    guest = over_hyperkit(bed)
    mac, ip = guest.mac, guest.lease.ip
    guest.close()
    bed.service.stop()
    bed.service.start()
    back = attach_hyperkit(bed)
    assert (back.mac, back.lease.ip) == (mac, ip)
    other, link = hyperkit_hands(bed.directory / "h", UUID[:-1] + "9")
    link.close()
    assert other != mac


def test_a_service_that_its_vm_started_ends_with_it(host: Namespace, workshop: Path, probe: Path) -> None:
    directory = workshop / "started"
    flags = f"--runtime-dir {directory}/r --state-dir {directory}/s --api unix://{directory}/api --listen stdio="
    directory.mkdir()
    guest = NamespaceGuest(workshop, f"stdio:{MOORAGE} serve {flags}", MAC, probe, host)
    with contextlib.closing(guest):
        assert guest.configure().ip == "192.168.127.2"
        assert str(directory) in "".join(commands(host))
    wait_for(lambda: not [line for line in commands(host) if str(directory) in line], 10.0, "the service to end")
    assert not list((directory / "r").glob("*.sock"))


def commands(host: Namespace) -> list[str]:
    """The command lines of what runs on the host."""
    found = []
    for pid in host.pids():
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return found
