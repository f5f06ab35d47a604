"""Forwarded ports, as gvproxy's users know them."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.guests.host import ADDRESS
from tests.guests.namespace import NamespaceGuest
from tests.guests.servers import udp_echo
from tests.guests.service import Attach, Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

SIZE = 20_000_000


@pytest.fixture
def guest(service: Service, attach: Attach) -> NamespaceGuest:
    guest = attach(service)
    guest.configure()
    return guest


def test_datagrams_pass_a_forwarded_port_both_ways(service: Service, guest: NamespaceGuest) -> None:
    with udp_echo(guest.namespace, guest.lease.ip) as port:
        with service.exposed("127.0.0.1:5300", f"{guest.lease.ip}:{port}", "udp"):
            with service.host.entered():
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with client:
                client.settimeout(5)
                client.connect(("127.0.0.1", 5300))
                for size in (1, 1472, 1473, 8000):
                    client.send(bytes(size))
                    assert len(client.recv(65536)) == size


def test_half_close_passes_a_forwarded_port_both_ways(service: Service, guest: NamespaceGuest) -> None:
    """The host sends and closes its direction; the guest answers only then, and the answer arrives whole."""
    with guest.namespace.entered():
        listener = socket.create_server((guest.lease.ip, 0))
    received = bytearray()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 16):
                received.extend(data)
            connection.sendall(received[::-1])

    server = threading.Thread(target=answer)
    server.start()
    message = bytes(range(256)) * (SIZE // 256)
    with listener, service.exposed("127.0.0.1:5301", f"{guest.lease.ip}:{listener.getsockname()[1]}"):
        with service.host.entered():
            client = socket.create_connection(("127.0.0.1", 5301), 10)
        with client:
            client.sendall(message)
            client.shutdown(socket.SHUT_WR)
            back = b"".join(iter(lambda: client.recv(1 << 16), b""))
        server.join(10)
    assert bytes(received) == message
    assert back == message[::-1]


def test_a_port_that_the_guest_does_not_serve_resets_the_client(service: Service, guest: NamespaceGuest) -> None:
    with service.exposed("127.0.0.1:5302", f"{guest.lease.ip}:9"):
        with service.host.entered(), pytest.raises(ConnectionResetError):
            with socket.create_connection(("127.0.0.1", 5302), 5) as client:  # may find it reset already
                client.recv(1)


@pytest.mark.parametrize(("source", "seen"), [("keep", ADDRESS), ("gateway", "192.168.127.1")])
def test_the_guest_sees_who_connects_unless_that_is_set_off(
    service: Service, guest: NamespaceGuest, source: str, seen: str
) -> None:
    with guest.namespace.entered():
        listener = socket.create_server((guest.lease.ip, 0))
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(listener.getsockname())
    with listener, receiver:
        remote = f"{guest.lease.ip}:{listener.getsockname()[1]}"
        for protocol in ("tcp", "udp"):
            body = {"local": ":5305", "remote": remote, "protocol": protocol, "source": source}
            assert service.request("POST", "/v1/forwards", body)[0] == 201
        with service.host.entered():
            client = socket.create_connection((ADDRESS, 5305), 5, (ADDRESS, 0))
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with client, sender:
            connection, peer = listener.accept()
            assert peer == (seen, client.getsockname()[1])
            connection.close()
            assert client.recv(1) == b""
            sender.bind((ADDRESS, 0))
            sender.connect((ADDRESS, 5305))
            sender.send(b"question")
            question, peer = receiver.recvfrom(100)
            assert (question, *peer) == (b"question", seen, sender.getsockname()[1])
            receiver.sendto(b"answer", peer)
            assert sender.recv(100) == b"answer"
        for protocol in ("tcp", "udp"):
            assert service.request("DELETE", f"/v1/forwards?local=:5305&protocol={protocol}")[0] == 204


def test_a_forward_to_a_host_name_follows_it(service: Service, attach: Attach) -> None:
    """A DHCP host name, and a record that comes to stand for another VM while the forward is there."""
    ips = {}
    for name in ("web", "other"):
        guest = attach(service)
        ips[name] = guest.configure(hostname=name).ip
        guest.sh(f"d=$(mktemp -d) && echo {name} >$d/index.html && busybox httpd -p 80 -h $d")

    def fetched(port: int) -> str:
        return service.host.run("curl", "-sS", "--max-time", "5", f"http://127.0.0.1:{port}/").stdout

    def record(name: str) -> None:
        zone = {"Name": "lab.", "Records": [{"Name": "www", "IP": ips[name]}], "DefaultIP": ""}
        assert service.request("POST", "/services/dns/add", zone)[0] == 200

    record("web")
    with service.exposed("127.0.0.1:5306", "WEB:80"), service.exposed("127.0.0.1:5307", "www.lab:80"):
        assert (fetched(5306), fetched(5307)) == ("web\n", "web\n")
        record("other")
        assert (fetched(5306), fetched(5307)) == ("web\n", "other\n")


def test_a_port_in_use_is_said_to_be(service: Service, guest: NamespaceGuest) -> None:
    with service.host.entered():
        holder = socket.create_server(("127.0.0.1", 5303))
    with holder:
        body = {"local": "127.0.0.1:5303", "remote": f"{guest.lease.ip}:80"}
        status, text = service.request("POST", "/services/forwarder/expose", body)
    assert status == 500
    assert "listen tcp 127.0.0.1:5303: bind: address already in use" in text


def test_a_forward_waits_for_its_guest(service: Service, attach: Attach) -> None:
    guest = attach(service)
    lease = guest.configure()
    guest.close()
    wait_for(lambda: all(vm["mac"] != guest.mac for vm in service.get("/v1/vms")["vms"]), 5, "the VM to be gone")
    with service.exposed("127.0.0.1:5304", f"{lease.ip}:80"):
        back = attach(service, guest.mac)
        back.configure()
        back.sh("d=$(mktemp -d) && echo back >$d/index.html && busybox httpd -p 80 -h $d")
        fetched = service.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:5304/")
        assert fetched.stdout == "back\n", fetched.stderr
