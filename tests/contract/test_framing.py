"""gvproxy's framing on every transport, byte by byte (containers/gvisor-tap-vsock 3405fe5c); what is better here."""

from __future__ import annotations

import re
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.guests.gvproxy import MAC, Gvproxy
from tests.guests.host import make_host
from tests.guests.namespace import Namespace
from tests.guests.service import MOORAGE
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

U32, U16 = struct.Struct(">I"), struct.Struct("<H")
FLAGS = ("-listen", "unix://DIR/api.sock", "-ssh-port", "-1")
GATEWAY_MAC, VM_MAC = (bytes.fromhex(mac.replace(":", "")) for mac in ("5a:94:ef:e4:0c:dd", MAC))
GATEWAY, VM = bytes((192, 168, 127, 1)), bytes((192, 168, 127, 2))
ARP = bytes.fromhex("0806 0001 0800 06 04")
QUESTION = b"\xff" * 6 + VM_MAC + ARP + b"\0\1" + VM_MAC + VM + bytes(6) + GATEWAY
"""Who has 192.168.127.1?"""
ANSWER = VM_MAC + GATEWAY_MAC + ARP + b"\0\2" + GATEWAY_MAC + GATEWAY + VM_MAC + VM
LONGEST = 131072
"""Bytes of a frame."""
INIT = b"VMN3T" + struct.pack("<I40s", 22, b"a commit")
UUID = b"c3d68012-0208-11ea-9fd7-f2189899ab08"
GVFORWARDER = b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n"
"""Its very bytes."""


class Link:
    """A VM's end: frames with the length in front that the transport has, or bare ones."""

    def __init__(self, sock: socket.socket, length: struct.Struct | None) -> None:
        self.sock = sock
        self.length = length
        sock.settimeout(15)

    def pack(self, frame: bytes) -> bytes:
        return (self.length.pack(len(frame)) if self.length else b"") + frame

    def send(self, frame: bytes) -> None:
        self.sock.sendall(self.pack(frame))

    def receive(self) -> bytes:
        if self.length is None:
            return self.sock.recv(1 << 17)
        (size,) = self.length.unpack(self.exactly(self.length.size))
        return self.exactly(size)

    def exactly(self, size: int) -> bytes:
        """So many bytes of the stream."""
        received = b""
        while len(received) < size:
            data = self.sock.recv(size - len(received))
            assert data, f"the end after {received!r}"
            received += data
        return received

    def check(self) -> None:
        """A question, and nothing but its answer."""
        self.send(QUESTION)
        assert self.receive() == ANSWER

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def dial(path: Path, kind: int = socket.SOCK_STREAM, name: str = "") -> socket.socket:
    """`name`: a path of the socket's own."""
    sock = socket.socket(socket.AF_UNIX, kind)
    if name:
        sock.bind(name)
    sock.connect(str(path))
    return sock


def shake_hands(running: Gvproxy, init: bytes = INIT, uuid: bytes = UUID) -> tuple[bytes, bytes, Link]:
    """VPNKit's handshake: the 49 and the 258 bytes that come back, and the link."""
    link = Link(dial(running.directory / "vpnkit"), U16)
    link.sock.sendall(init)
    echoed = link.exactly(49)
    link.sock.sendall(b"\x01" + uuid + bytes(4))
    return echoed, link.exactly(258), link


def connect(running: Gvproxy, request: bytes = GVFORWARDER, length: struct.Struct = U16) -> Link:
    """By `/connect`."""
    sock = dial(running.api)
    sock.sendall(request)
    return Link(sock, length)


def datagrams(running: Gvproxy, name: str = "card", first: bytes = b"VFKT") -> Link:
    """As vfkit attaches: a path of its own, and `VFKT` before the first frame."""
    link = Link(dial(running.directory / "vfkit", socket.SOCK_DGRAM, str(running.directory / name)), None)
    if first:
        link.send(first)
    return link


TRANSPORTS: dict[str, tuple[tuple[str, ...], Callable[[Gvproxy], Link]]] = {
    "qemu": (("-listen-qemu", "unix://DIR/qemu.sock"), lambda running: Link(dial(running.qemu), U32)),
    "bess": (
        ("-listen-bess", "unixpacket://DIR/bess"),
        lambda running: Link(dial(running.directory / "bess", socket.SOCK_SEQPACKET), None),
    ),
    "vpnkit": (("-listen-vpnkit", "unix://DIR/vpnkit"), lambda running: shake_hands(running)[2]),
    "vfkit": (("-listen-vfkit", "unixgram://DIR/vfkit"), datagrams),
    "connect": ((), connect),
}
SEVERAL = (*TRANSPORTS["vpnkit"][0], *TRANSPORTS["vfkit"][0])
"""Transports whose VMs come and go."""


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        yield host


@pytest.fixture(scope="module")
def running(host: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gvproxy]:
    """For VMs that come and go."""
    with Gvproxy(host, tmp_path_factory.mktemp("running"), *FLAGS, *SEVERAL) as running:
        yield running


@pytest.fixture(scope="module", params=[*TRANSPORTS, "stdio"])
def link(request: pytest.FixtureRequest, host: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A VM by each transport in turn."""
    directory = tmp_path_factory.mktemp("link")
    if request.param == "stdio":
        ours, theirs = socket.socketpair()
        with theirs:
            stdio = (theirs.fileno(), theirs.fileno())
            running = Gvproxy(host, directory, *FLAGS, "-listen-stdio", "accept", stdio=stdio)
        with running, Link(ours, U16) as link:
            yield link
            running.stop()
        return
    flags, attach = TRANSPORTS[request.param]
    with Gvproxy(host, directory, *FLAGS, *flags) as running, attach(running) as link:
        yield link
        running.stop()


# --- every transport


def test_a_frame_goes_each_way_as_the_transport_frames_it(link: Link) -> None:
    """qemu u32 BE; vpnkit u16 LE; stdio u16 LE on stdin/stdout; bess and vfkit bare frames; `/connect`: u16 LE by
    default"""
    link.check()
    link.send(QUESTION)
    link.send(QUESTION)
    assert [link.receive(), link.receive()] == [ANSWER, ANSWER]


@pytest.mark.parametrize("size", [0, 1, 6, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("dst", [b"\xff" * 6, GATEWAY_MAC, b"\x02\0\0\0\0\x09"], ids=["broadcast", "gateway", "other"])
def test_a_short_frame_is_survived_whatever_its_length(link: Link, size: int, dst: bytes) -> None:
    """A 12- or 13-byte frame to broadcast/gateway panics the process (exit 2) there: Moorage counts and drops. 0-11 and
    >=14 byte ones (and short unicast to others) are survived."""
    if size or link.sock.type != socket.SOCK_SEQPACKET:  # whose empty message is its end
        link.send((dst + VM_MAC + b"\x08\0\x45")[:size])
    link.check()


def test_frames_without_a_header_are_counted(running: Gvproxy) -> None:
    """A 12 or 13 byte frame: Moorage counts and drops."""
    with connect(running) as link:
        for size in (12, 13):
            link.send((b"\xff" * 6 + VM_MAC + b"\x08")[:size])
        link.check()
        # the metric is of VMs that are attached
        counted = re.compile(r"^moorage_ethernet_malformed_total\{.*\} 2\.0$", re.MULTILINE)
        wait_for(lambda: counted.search(running.request("GET", "/metrics")[1]), 10, "two frames to be counted")


def test_the_longest_frame_is_survived(link: Link) -> None:
    """Length >131072 ends a link, and no shorter one does; better: a message longer than the MTU is counted"""
    sizes = {U32: LONGEST, U16: 65535, None: 65535}
    link.send(QUESTION.ljust(sizes[link.length], b"\0"))
    if link.length is not None:
        assert link.receive() == ANSWER
    link.check()


# --- qemu


@pytest.mark.parametrize(
    ("last", "reason"), [(U32.pack(LONGEST + 1), str(LONGEST + 1)), (U32.pack(100) + b"cut", "EOF"), (b"", "EOF")]
)
def test_a_length_over_the_limit_and_the_end_of_the_link_are_told_alike(
    host: Namespace, tmp_path: Path, last: bytes, reason: str
) -> None:
    """Length >131072 or EOF => `cannot receive packets from ADDR, disconnecting: ...`"""
    flags, attach = TRANSPORTS["qemu"]
    with Gvproxy(host, tmp_path, *FLAGS, *flags) as running:
        with attach(running) as link:
            link.check()
            link.sock.sendall(last)
            link.sock.shutdown(socket.SHUT_WR)
            assert link.sock.recv(1) == b""
        assert running.ended() == 0
    *_, told = running.log_text().splitlines()
    assert "gvproxy exiting: cannot receive packets from" in told
    assert reason in told.partition("disconnecting: ")[2]


def test_a_qemu_that_the_wrapper_started_has_the_link_as_descriptor_3(host: Namespace, tmp_path: Path) -> None:
    """qemu-wrapper: `qemu-wrapper SOCK CMD ARGS...`, connected socket becomes fd 3."""
    speak = "import os, sys; os.write(3, bytes.fromhex(sys.argv[1])); print(os.read(3, 100).hex(), end='')"
    with Gvproxy(host, tmp_path, *FLAGS, *TRANSPORTS["qemu"][0]) as running:
        question, answer = (U32.pack(len(frame)) + frame for frame in (QUESTION, ANSWER))
        command = (sys.executable, "-c", speak, question.hex())
        done = host.run(str(MOORAGE), "qemu-wrapper", str(running.qemu), *command)
        assert (done.stdout, done.returncode) == (answer.hex(), 0), done.stderr
        assert running.ended() == 0


# --- vpnkit


@pytest.mark.parametrize("version", [1, 22, 0xFFFFFFFF])
def test_vpnkits_first_49_bytes_are_echoed_unchanged(running: Gvproxy, version: int) -> None:
    """reads 49, echoes them unchanged"""
    init = b"VMN3T" + struct.pack("<I40s", version, b"0123456789abcdef" * 3)
    echoed, _, link = shake_hands(running, init)
    with link:
        assert echoed == init
        link.check()


def test_vpnkits_258_bytes_describe_the_card(running: Gvproxy) -> None:
    """reads 41 (byte 0, 1..36 UUID text); replies 258: `01`, mtu LE16, mtu+14 LE16, MAC6, zeros; UUID
    c3d68012-0208-11ea-9fd7-f2189899ab08 => 5a:94:ef:e4:0c:ee"""
    for uuid in (UUID, UUID.upper()):
        _, vif, link = shake_hands(running, uuid=uuid)
        with link:
            assert vif == struct.pack("<BHH6s", 1, 1500, 1514, VM_MAC) + bytes(247)


def test_a_vm_with_another_uuid_has_a_local_unicast_mac(running: Gvproxy) -> None:
    """unknown UUID => random local unicast MAC; better: the same again for the same UUID"""
    macs = []
    for uuid in (UUID[:-1] + b"9", UUID[:-1] + b"7", UUID[:-1] + b"9"):
        _, vif, link = shake_hands(running, uuid=uuid)
        with link:
            macs.append(vif[5:11])
    assert macs[0] == macs[2] != macs[1]
    assert all(mac[0] & 3 == 2 for mac in macs)


def test_a_frame_may_follow_vpnkits_handshake_at_once(running: Gvproxy) -> None:
    """49/41/258 handshake then u16 LE framing: all of a VM's bytes in one write"""
    with Link(dial(running.directory / "vpnkit"), U16) as link:
        link.sock.sendall(INIT + b"\x01" + UUID + bytes(4) + link.pack(QUESTION))
        assert link.exactly(49 + 258).startswith(INIT + b"\x01")
        assert link.receive() == ANSWER


def test_a_handshake_that_is_none_ends_that_link_alone(running: Gvproxy) -> None:
    """a handshake error is logged yet framing starts anyway there; better: it ends the link, and no other"""
    with Link(dial(running.directory / "vpnkit"), U16) as link:
        link.sock.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(49))
        assert link.sock.recv(1) == b""
    wait_for(lambda: "b'VMN3T'" in running.log_text(), 5, "the log line")
    with shake_hands(running)[2] as link:
        link.check()


# --- /connect


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE", "OPTIONS", "FOO"])
def test_connect_takes_any_method(running: Gvproxy, method: str) -> None:
    """`/connect` handshake: any method"""
    with connect(running, f"{method} /connect HTTP/1.1\r\nHost: \r\n\r\n".encode()) as link:
        link.check()


def test_connect_answers_nothing_and_frames_follow_at_once(running: Gvproxy) -> None:
    """`POST /connect HTTP/1.1...` (gvforwarder's exact bytes): no response bytes at all; frames follow at once"""
    with connect(running) as link:
        wait_for(lambda: [vm for vm in running.get("/v1/vms")["vms"] if vm["link"] == "http"], 10, "the VM")
        link.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            link.sock.recv(1)
        link.sock.settimeout(15)
        link.check()


@pytest.mark.parametrize("cut", [0, 1, 2, 20, 44])
def test_frames_in_one_read_with_the_request_are_kept(running: Gvproxy, cut: int) -> None:
    """Frame bytes arriving in the same read as the request are lost by gvproxy (a replacement should keep them)"""
    framed = U16.pack(len(QUESTION)) + QUESTION
    with connect(running, GVFORWARDER + framed + framed[:cut]) as link:
        assert link.receive() == ANSWER
        link.sock.sendall(framed[cut:])
        assert link.receive() == ANSWER


@pytest.mark.parametrize("transport", ["qemu", "bess"])
def test_connect_does_not_follow_another_flags_framing(host: Namespace, tmp_path: Path, transport: str) -> None:
    """`/connect` changes framing when another attach flag is given: always 2-byte little-endian, unless asked."""
    with Gvproxy(host, tmp_path, *FLAGS, *TRANSPORTS[transport][0]) as running:
        with connect(running) as link:
            link.check()
        with connect(running, b"POST /connect?framing=qemu HTTP/1.1\r\nHost: \r\n\r\n", U32) as link:
            link.check()


# --- vfkit


@pytest.mark.parametrize("first", [b"VFKT", b""], ids=["vfkit", "libkrun"])
def test_a_first_datagram_vfkt_is_discarded(running: Gvproxy, first: bytes) -> None:
    """first datagram's sender address becomes the peer; `VFKT` first datagram discarded"""
    with datagrams(running, f"card-{first.decode()}", first) as link:
        link.check()


def test_a_sender_that_cannot_be_answered_is_passed_over(running: Gvproxy) -> None:
    """first datagram's sender address (must be a bound path, else `vfkit accept error: ...` and exit 0 there); better:
    nobody else's link ends"""
    with Link(dial(running.directory / "vfkit", socket.SOCK_DGRAM), None) as nameless:
        nameless.send(QUESTION)
        with datagrams(running, "named") as link:
            link.check()


def test_another_sender_is_another_vm(running: Gvproxy) -> None:
    """frames from other senders are accepted too there; better: each has a link of its own"""
    with datagrams(running, "one") as one:
        one.check()
        with datagrams(running, "two") as two:
            two.check()
            one.check()
