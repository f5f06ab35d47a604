"""What gvproxy does with a VM's connections, datagrams and pings (containers/gvisor-tap-vsock 3405fe5c): a real guest's
sockets on one side, the host's on the other. And what is better here."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.guest import build_probe
from tests.guests.gvproxy import MAC, Gvproxy
from tests.guests.host import ADDRESS, NO_HOST, NO_NETWORK, make_host
from tests.guests.namespace import Namespace, NamespaceGuest
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

FLAGS = ("-listen", "unix://DIR/api.sock", "-listen", "tcp://127.0.0.1:7777", "-ssh-port", "-1")
GATEWAY, HOST, VM = "192.168.127.1", "192.168.127.254", "192.168.127.2"
METADATA = "169.254.169.254"
LARGEST = 65507
MANY = 200
"""Connections at once; gvproxy takes ten."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST."""


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    """Like a cloud's, with an address for metadata."""
    with make_host() as host:
        host.ip("address", "add", f"{METADATA}/32", "dev", "lo")
        yield host


@contextlib.contextmanager
def attached(running: Gvproxy, host: Namespace) -> Iterator[NamespaceGuest]:
    directory = running.directory
    guest = NamespaceGuest(directory, f"unix://{running.api}/connect", MAC, build_probe(directory), host)
    with contextlib.closing(guest):
        guest.configure()
        yield guest


@pytest.fixture(scope="module")
def running(host: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gvproxy]:
    with Gvproxy(host, tmp_path_factory.mktemp("running"), *FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def guest(running: Gvproxy, host: Namespace) -> Iterator[NamespaceGuest]:
    with attached(running, host) as guest:
        yield guest


def listening(where: Namespace, address: str = "127.0.0.1", port: int = 0, backlog: int = 100) -> socket.socket:
    with where.entered():
        server = socket.create_server((address, port), backlog=backlog)
    server.settimeout(10)
    return server


def dialled(where: Namespace, address: str, port: int) -> socket.socket:
    with where.entered():
        return socket.create_connection((address, port), 10)


def datagrams(where: Namespace, address: str = "") -> socket.socket:
    """A socket for UDP, bound where `address` says so."""
    with where.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if address:
            sock.bind((address, 0))
    sock.settimeout(10)
    return sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@contextlib.contextmanager
def joined(guest: NamespaceGuest, host: Namespace) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from the guest to the host: both ends."""
    with listening(host) as server, dialled(guest.namespace, HOST, port_of(server)) as ours:
        theirs, _ = server.accept()
        with theirs:
            theirs.settimeout(10)
            yield ours, theirs


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


# --- TCP


def test_the_host_address_is_the_hosts_loopback(guest: NamespaceGuest, host: Namespace) -> None:
    """NAT; dial: nat {hostIP: 127.0.0.1}"""
    with joined(guest, host) as (ours, theirs):
        ours.sendall(b"question")
        assert theirs.recv(100) == b"question"
        theirs.sendall(b"answer")
        assert ours.recv(100) == b"answer"
        assert theirs.getpeername()[0] == "127.0.0.1"


def test_what_refuses_the_host_refuses_the_guest(guest: NamespaceGuest) -> None:
    """RST on failure"""
    with pytest.raises(ConnectionRefusedError):
        dialled(guest.namespace, HOST, 9)


@pytest.mark.parametrize(("address", "error"), [(NO_NETWORK, errno.ENETUNREACH), (NO_HOST, errno.EHOSTUNREACH)])
def test_a_destination_that_cannot_be_reached_is_said_to_be(guest: NamespaceGuest, address: str, error: int) -> None:
    """RST on failure; better: the guest learns by ICMP why"""
    with pytest.raises(OSError, match=rf"\[Errno {error}\]"):
        dialled(guest.namespace, address, 80)


def test_either_side_may_close_its_direction_first(guest: NamespaceGuest, host: Namespace) -> None:
    """half-close kept"""
    for host_first in (False, True):
        with joined(guest, host) as ends:
            first, second = reversed(ends) if host_first else ends
            first.sendall(b"question")
            first.shutdown(socket.SHUT_WR)
            assert read_all(second) == b"question"
            second.sendall(b"answer")
            second.close()
            assert read_all(first) == b"answer"


def test_a_reset_passes_both_ways(guest: NamespaceGuest, host: Namespace) -> None:
    """A reset from the host reaches the guest as FIN there: pass RST both ways."""
    for host_first in (False, True):
        with joined(guest, host) as ends:
            first, second = reversed(ends) if host_first else ends
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            first.close()
            with pytest.raises(ConnectionResetError):
                second.recv(1)


def test_connections_that_hang_do_not_keep_others_from_being_made(guest: NamespaceGuest, host: Namespace) -> None:
    """Ten connections in flight per network, then SYNs are dropped: per-VM caps in the thousands."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(listening(host, backlog=0))
        stack.enter_context(dialled(host, "127.0.0.1", port_of(full)))  # and nobody accepts: the next SYNs are dropped
        with guest.namespace.entered():
            hanging = [stack.enter_context(socket.socket()) for _ in range(MANY)]
        for sock in hanging:
            sock.setblocking(False)
            assert sock.connect_ex((HOST, port_of(full))) == errno.EINPROGRESS
        with joined(guest, host) as (ours, theirs):
            ours.sendall(b"through")
            assert theirs.recv(100) == b"through"


# --- 169.254.0.0/16


def check_metadata_is_refused(guest: NamespaceGuest, host: Namespace) -> None:
    with listening(host, METADATA) as server, datagrams(host, METADATA) as receiver, datagrams(guest.namespace) as ours:
        with pytest.raises(ConnectionRefusedError):
            dialled(guest.namespace, METADATA, port_of(server))
        ours.connect((METADATA, port_of(receiver)))
        ours.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            ours.recv(1)
        for nothing_came in (server.accept, lambda: receiver.recv(1)):
            server.setblocking(False)
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                nothing_came()


def check_metadata_is_reached(guest: NamespaceGuest, host: Namespace) -> None:
    with listening(host, METADATA) as server, datagrams(host, METADATA) as receiver, datagrams(guest.namespace) as ours:
        with dialled(guest.namespace, METADATA, port_of(server)):
            server.accept()[0].close()
        ours.sendto(b"question", (METADATA, port_of(receiver)))
        assert receiver.recv(100) == b"question"


def test_link_local_addresses_are_refused(guest: NamespaceGuest, host: Namespace) -> None:
    """TCP: 169.254/16 RST; UDP is swallowed there, better: port unreachable"""
    check_metadata_is_refused(guest, host)


@pytest.mark.parametrize(
    "text", ["", "ec2-metadata-access: true", "stack: {ec2MetadataAccess: true}"], ids=["flag", "file", "stack"]
)
def test_link_local_addresses_are_reached_where_that_is_asked_for(host: Namespace, tmp_path: Path, text: str) -> None:
    """`-ec2-metadata-access` has no effect there, only YAML `stack.ec2MetadataAccess: true`; here it works."""
    (tmp_path / "yaml").write_text(text)
    asked = ("-config", "DIR/yaml") if text else ("-ec2-metadata-access", "-ssh-port", "-1")
    flags = (*FLAGS[:2], *asked)
    with Gvproxy(host, tmp_path, *flags) as running, attached(running, host) as guest:
        check_metadata_is_reached(guest, host)


# --- UDP


def test_datagrams_of_every_size_pass_both_ways(guest: NamespaceGuest, host: Namespace) -> None:
    """UDP: buffer 65507. Better: zero-length datagrams pass both ways."""
    with datagrams(host, "127.0.0.1") as theirs, datagrams(guest.namespace) as ours:
        ours.connect((HOST, port_of(theirs)))
        for size in (0, 1, 1472, 1473, 9000, LARGEST, 0):
            ours.send(bytes(size))
            asked, peer = theirs.recvfrom(65536)
            assert len(asked) == size
            theirs.sendto(bytes(size), peer)
            assert len(ours.recv(65536)) == size


def test_whoever_knows_a_mapping_may_answer(guest: NamespaceGuest, host: Namespace) -> None:
    """UDP is symmetric there: endpoint-independent"""
    with (
        datagrams(host, "127.0.0.1") as one,
        datagrams(host, "127.0.0.1") as other,
        datagrams(host, ADDRESS) as elsewhere,
        datagrams(guest.namespace) as ours,
    ):
        ours.sendto(b"question", (HOST, port_of(one)))
        _, mapped = one.recvfrom(100)
        ours.sendto(b"question", (HOST, port_of(other)))
        assert other.recvfrom(100)[1] == mapped
        other.sendto(b"uncalled", mapped)
        assert ours.recvfrom(100) == (b"uncalled", (HOST, port_of(other)))
        ours.sendto(b"question", (ADDRESS, port_of(elsewhere)))
        _, (_, port) = elsewhere.recvfrom(100)
        assert port == mapped[1]
        elsewhere.sendto(b"answer", (ADDRESS, port))
        assert ours.recvfrom(100) == (b"answer", (ADDRESS, port_of(elsewhere)))


def test_a_closed_port_refuses_datagrams(guest: NamespaceGuest) -> None:
    """UDP never refuses there: port unreachable"""
    with datagrams(guest.namespace) as ours:
        ours.connect((HOST, 9))
        ours.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            ours.recv(1)


def test_a_source_outside_the_subnet_goes_nowhere(guest: NamespaceGuest, host: Namespace) -> None:
    """Routes only the subnet: replies to a guest source outside it fail; better: it is not let out at all"""
    guest.namespace.ip("address", "add", "10.9.9.9/32", "dev", guest.interface)
    with datagrams(host, "127.0.0.1") as theirs:
        with datagrams(guest.namespace, "10.9.9.9") as foreign, datagrams(guest.namespace) as ours:
            foreign.sendto(b"foreign", (HOST, port_of(theirs)))
            ours.sendto(b"ours", (HOST, port_of(theirs)))
            assert theirs.recv(100) == b"ours"


# --- ICMP


@pytest.mark.parametrize("address", [GATEWAY, HOST, ADDRESS])
def test_a_ping_is_answered_by_whom_it_is_for(guest: NamespaceGuest, address: str) -> None:
    """Ping of the host alias answers from the alias (127.0.0.1 there)."""
    assert f"bytes from {address}:" in guest.sh(f"busybox ping -c 1 -W 5 {address}")


def test_other_icmp_messages_are_not_answered(guest: NamespaceGuest) -> None:
    """ICMP: other types from guest dropped"""
    with guest.namespace.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(5)
        timestamp, echo = (struct.pack("!BBHHH", kind, 0, 0, 7, 1) for kind in (13, 8))
        for message, size in ((timestamp, 20), (echo, 8)):
            message = message.ljust(size, b"\0")
            total = sum(struct.unpack(f"!{size // 2}H", message))
            checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            sock.sendto(message[:2] + checksum.to_bytes(2, "big") + message[4:], (GATEWAY, 0))
        answer, _ = sock.recvfrom(100)
        assert answer[20] == 0  # to the echo: nothing came before


# --- forwarded ports


def expose(running: Gvproxy, local: str, remote: str, protocol: str = "tcp") -> None:
    body = {"local": local, "remote": remote, "protocol": protocol}
    assert running.request("POST", "/services/forwarder/expose", body) == (200, "")


def unexpose(running: Gvproxy, local: str, protocol: str = "tcp") -> None:
    body = {"local": local, "protocol": protocol}
    assert running.request("POST", "/services/forwarder/unexpose", body) == (200, "")


def test_a_live_connection_outlives_its_forward(running: Gvproxy, guest: NamespaceGuest, host: Namespace) -> None:
    """unexpose: listener closed, live TCP kept"""
    with listening(guest.namespace, VM) as server:
        expose(running, "127.0.0.1:7200", f"{VM}:{port_of(server)}")
        with dialled(host, "127.0.0.1", 7200) as client:
            connection, _ = server.accept()
            with connection:
                unexpose(running, "127.0.0.1:7200")
                with pytest.raises(ConnectionRefusedError):
                    dialled(host, "127.0.0.1", 7200)
                client.sendall(b"still there")
                assert connection.recv(100) == b"still there"


def test_the_guest_sees_the_clients_own_address(running: Gvproxy, guest: NamespaceGuest, host: Namespace) -> None:
    """Since that version upstream also keeps the client's source address on forwards"""
    with listening(guest.namespace, VM) as server:
        expose(running, ":7201", f"{VM}:{port_of(server)}")
        with dialled(host, ADDRESS, 7201) as client:
            connection, peer = server.accept()
            connection.close()
            assert peer == client.getsockname() == (ADDRESS, port_of(client))
        unexpose(running, ":7201")


def test_a_reset_and_a_half_close_pass_a_forwarded_port(
    running: Gvproxy, guest: NamespaceGuest, host: Namespace
) -> None:
    """pass RST both ways; half-close kept"""
    with listening(guest.namespace, VM) as server:
        expose(running, "127.0.0.1:7202", f"{VM}:{port_of(server)}")
        with dialled(host, "127.0.0.1", 7202) as client:
            connection, _ = server.accept()
            with connection:
                client.sendall(b"question")
                client.shutdown(socket.SHUT_WR)
                assert read_all(connection) == b"question"
                connection.sendall(b"answer")
                assert client.recv(6, socket.MSG_WAITALL) == b"answer"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        unexpose(running, "127.0.0.1:7202")


def test_a_silent_guest_is_given_up_after_ten_seconds(running: Gvproxy, guest: NamespaceGuest, host: Namespace) -> None:
    """Host => guest dial timeout 10 s; /tunnel: dial (10 s) comes after OK, failure = close"""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(listening(guest.namespace, VM, backlog=0))
        stack.enter_context(dialled(guest.namespace, VM, port_of(full)))  # nobody accepts: further SYNs are dropped
        expose(running, "127.0.0.1:7206", f"{VM}:{port_of(full)}")
        began = time.monotonic()
        client = stack.enter_context(dialled(host, "127.0.0.1", 7206))
        tunnel = stack.enter_context(socket.socket(socket.AF_UNIX))
        tunnel.connect(str(running.api))
        tunnel.sendall(f"GET /tunnel?ip={VM}&port={port_of(full)} HTTP/1.1\r\nHost: \r\n\r\n".encode())
        client.settimeout(30)
        tunnel.settimeout(30)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert 9.5 < time.monotonic() - began < 14  # three repeated SYNs, and no more, would be 15
        assert read_all(tunnel) == b"OK"
        unexpose(running, "127.0.0.1:7206")


def test_a_port_the_guest_does_not_serve_resets_its_client(
    running: Gvproxy, guest: NamespaceGuest, host: Namespace
) -> None:
    """Host => guest dial: failure = close; better: as a reset"""
    expose(running, "127.0.0.1:7203", f"{VM}:9")
    with pytest.raises(ConnectionResetError), dialled(host, "127.0.0.1", 7203) as client:
        client.recv(1)
    unexpose(running, "127.0.0.1:7203")


def test_datagrams_pass_a_forwarded_port(running: Gvproxy, guest: NamespaceGuest, host: Namespace) -> None:
    """POST expose, protocol udp; better: zero-length datagrams pass both ways"""
    with datagrams(guest.namespace, VM) as server, datagrams(host) as client:
        expose(running, "127.0.0.1:7204", f"{VM}:{port_of(server)}", "udp")
        client.connect(("127.0.0.1", 7204))
        for size in (0, 100, LARGEST):
            client.send(bytes(size))
            asked, peer = server.recvfrom(65536)
            assert len(asked) == size
            server.sendto(bytes(size), peer)
            assert len(client.recv(65536)) == size
        unexpose(running, "127.0.0.1:7204", "udp")


@pytest.mark.parametrize("local", ["0.0.0.0", "", "[::]"])
def test_a_forward_of_any_address_takes_clients_of_ipv4_and_ipv6(
    running: Gvproxy, guest: NamespaceGuest, host: Namespace, local: str
) -> None:
    """local as `:port`, `ip:port`: to Go's `net.Listen` an unspecified address, of either family, is all of both"""
    with listening(guest.namespace, VM) as server, datagrams(guest.namespace, VM) as receiver:
        expose(running, f"{local}:7207", f"{VM}:{port_of(server)}")
        expose(running, f"{local}:7207", f"{VM}:{port_of(receiver)}", "udp")
        for address, family in ((ADDRESS, socket.AF_INET), ("::1", socket.AF_INET6)):
            with dialled(host, address, 7207) as client:
                connection, _ = server.accept()
                connection.close()
                assert client.recv(1) == b""
            with host.entered(), socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.settimeout(10)
                sender.connect((address, 7207))
                sender.send(b"question")
                receiver.sendto(b"answer", receiver.recvfrom(100)[1])
                assert sender.recv(100) == b"answer"
        shown = [forward["local"] for forward in running.get("/services/forwarder/all")]
        assert shown == [f"{local}:7207"] * 2
        unexpose(running, f"{local}:7207")
        unexpose(running, f"{local}:7207", "udp")


def test_a_unix_socket_leads_to_a_port(
    running: Gvproxy, guest: NamespaceGuest, host: Namespace, tmp_path: Path
) -> None:
    """unix: local = file path; remote `tcp://ip:port`"""
    with listening(guest.namespace, VM) as server, socket.socket(socket.AF_UNIX) as client:
        expose(running, str(tmp_path / "s"), f"tcp://{VM}:{port_of(server)}", "unix")
        client.settimeout(10)
        client.connect(str(tmp_path / "s"))
        connection, _ = server.accept()
        with connection:
            client.sendall(b"question")
            assert connection.recv(100) == b"question"
        unexpose(running, str(tmp_path / "s"), "unix")


def test_a_remote_without_a_host_is_the_callers(running: Gvproxy, host: Namespace) -> None:
    """`":port"` => caller's IP"""
    url = "http://127.0.0.1:7777/services/forwarder/expose"
    body = '{"local":"127.0.0.1:7205","remote":":80"}'
    done = host.run("curl", "-sS", "--max-time", "10", "-w", "%{http_code}", "-d", body, url)
    assert done.stdout == "200", done.stderr
    assert running.get("/services/forwarder/all") == [
        {"local": "127.0.0.1:7205", "remote": "127.0.0.1:80", "protocol": "tcp"}
    ]
    unexpose(running, "127.0.0.1:7205")


def test_a_tunnel_leads_to_a_port(running: Gvproxy, guest: NamespaceGuest) -> None:
    """`/tunnel?ip=&port=`: raw `OK` (2 bytes, no HTTP status), then bytes"""
    with listening(guest.namespace, VM) as server, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(running.api))
        client.sendall(f"POST /tunnel?ip={VM}&port={port_of(server)} HTTP/1.1\r\nHost: \r\n\r\nhello".encode())
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            assert connection.recv(100) == b"hello"
            connection.sendall(b"world")
        assert read_all(client) == b"OKworld"


def test_bytes_are_counted_each_way(running: Gvproxy, guest: NamespaceGuest, host: Namespace) -> None:
    """BytesSent (to VMs), BytesReceived"""
    before = running.get("/stats")
    with datagrams(host, "127.0.0.1") as theirs, datagrams(guest.namespace) as ours:
        ours.sendto(bytes(1000), (HOST, port_of(theirs)))
        theirs.sendto(b"x", theirs.recvfrom(2000)[1])
        ours.recv(100)
    after = wait_for(
        lambda: stats if (stats := running.get("/stats"))["BytesSent"] > before["BytesSent"] else None, 5, "the bytes"
    )
    assert after["BytesReceived"] - before["BytesReceived"] >= 1042
