"""VMs that see each other: on one network, worker to worker; and those that must not."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dpkt
import pytest

from tests.guests.crowd import GATEWAY_MAC, Crowd, LightVm
from tests.guests.guest import Guest
from tests.guests.host import make_host
from tests.guests.namespace import NamespaceGuest, TapGuest
from tests.guests.servers import file_server
from tests.guests.service import Attach, Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

CROWD = 49
"""And one more VM, a real one, makes fifty."""
TRANSFER = 50_000_000
ETH_P_ALL = 3
EXPERIMENT = 0x88B5
"""IEEE's EtherType for experiments."""


@contextlib.contextmanager
def crowd(path: Path, count: int) -> Iterator[Crowd]:
    """So many configured light guests on a listener."""
    with contextlib.ExitStack() as opened:
        vms = [opened.enter_context(LightVm(path, f"52:54:00:00:01:{number:02x}")) for number in range(1, count + 1)]
        for vm in vms:
            vm.configure()
        opened.pop_all()
    with Crowd(vms) as many:
        yield many


def reaches(guest: NamespaceGuest, ip: str) -> bool:
    return guest.attempt(f"busybox ping -c 1 -W 1 {ip}").status == 0


def download(guest: Guest, other: NamespaceGuest | TapGuest) -> None:
    """TRANSFER bytes from another VM, with their checksum."""
    with file_server(other.namespace, other.lease.ip) as files:
        url = f"http://{other.lease.ip}:{files.port}/data?size={TRANSFER}"
        got = guest.sh(f"busybox wget -q -O - '{url}' | busybox sha256sum", timeout=120)
        assert got.split()[0] == files.sha256(TRANSFER)


class Capture:
    """What comes to a guest's device, as far as it is of one of these EtherTypes."""

    def __init__(self, guest: NamespaceGuest) -> None:
        with guest.namespace.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sock.bind((guest.interface, ETH_P_ALL))
        self._sock.setblocking(False)
        self.frames: list[bytes] = []

    def until(self, payload: bytes, again: Callable[[], None]) -> None:
        """Take frames until one has this payload, which `again` sends: a switch may lose a frame."""

        def found() -> bool:
            again()
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, (_, _, kind, *_) = self._sock.recvfrom(1 << 16)
                    if kind != socket.PACKET_OUTGOING:
                        self.frames.append(frame)
            return any(payload in frame for frame in self.frames)

        wait_for(found, 10, f"{payload!r}")

    def close(self) -> None:
        self._sock.close()


def sweep(guest: NamespaceGuest, vms: Iterable[LightVm]) -> set[bytes]:
    """Ping all of them at once, each once; which answer. Not by busybox, whose sockets hold few answers of others."""
    wanted = {vm.ip for vm in vms}
    answered: set[bytes] = set()
    with guest.namespace.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(10)
        for number, ip in enumerate(wanted):
            echo = dpkt.icmp.ICMP(type=dpkt.icmp.ICMP_ECHO, data=dpkt.icmp.ICMP.Echo(id=7, seq=number))
            sock.sendto(bytes(echo), (socket.inet_ntoa(ip), 0))
        with contextlib.suppress(TimeoutError):
            while answered != wanted:
                packet = dpkt.ip.IP(sock.recv(2048))
                if packet.data.type == dpkt.icmp.ICMP_ECHOREPLY:
                    answered.add(packet.src)
    return answered


def has(vm: LightVm, payload: bytes) -> bool:
    """Whether a frame with it has come to a VM."""
    return any(payload in frame for frame in vm.received)


def test_two_vms_talk_and_the_death_of_a_worker_is_a_pause(own_service: Service, attach: Attach) -> None:
    one, other = attach(own_service), attach(own_service)
    one.configure()
    other.configure()
    assert reaches(one, other.lease.ip)
    download(one, other)
    before = own_service.counters()
    assert before["switch.tx_bytes"] > TRANSFER
    for guest in (one, other):
        os.kill(own_service.vm(guest.mac)["worker_pid"], signal.SIGKILL)
        wait_for(lambda: reaches(one, other.lease.ip), 10, "the other VM to be reached again")
    download(other, one)


def link_local(mac: str) -> str:
    """The IPv6 address that Linux makes of a MAC (RFC 4291, appendix A)."""
    octets = [int(octet, 16) for octet in mac.split(":")]
    interface = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))


def test_vms_reach_each_other_over_ipv6_and_none_is_anothers_router(own_service: Service, attach: Attach) -> None:
    one, other = attach(own_service), attach(own_service)
    one.configure()
    other.configure()
    for guest in (one, other):  # a system may leave them out
        guest.attempt(f"ip -6 addr add {link_local(guest.mac)}/64 dev {guest.interface}")
    ping = f"busybox ping -6 -c 1 -W 1 {link_local(other.mac)}%{one.interface}"
    wait_for(lambda: one.attempt(ping).status == 0, 10, "the other VM to answer over IPv6")
    advertisement = dpkt.icmp6.ICMP6(type=134, data=bytes((64, 0, 7, 8)) + bytes(8))
    capture = Capture(one)
    with contextlib.closing(capture), LightVm(own_service.link_path, "52:54:00:00:02:02") as intruder:
        intruder.configure()
        capture.until(b"joined", lambda: intruder.send(intruder.frame(b"joined", EXPERIMENT)))
        source = ipaddress.IPv6Address(link_local("52:54:00:00:02:02")).packed
        packet = dpkt.ip6.IP6(
            src=source, dst=ipaddress.IPv6Address("ff02::1").packed, nxt=58, hlim=255, data=advertisement
        )
        packet.plen = len(bytes(advertisement))
        advertisement.sum = 0
        intruder.send(intruder.frame(bytes(packet), 0x86DD, bytes.fromhex("333300000001")))
        wait_for(lambda: own_service.counters()["switch.spoofed_router"] == 1, 10, "the router to be refused")
    assert one.sh("ip -6 route show default") == ""


def test_a_third_vm_that_forges_the_first_ones_mac_and_address_gets_nothing_through(
    own_service: Service, attach: Attach
) -> None:
    first, second = attach(own_service), attach(own_service)
    first.configure()
    second.configure()
    assert reaches(first, second.lease.ip)
    first_mac, second_mac = (bytes.fromhex(guest.mac.replace(":", "")) for guest in (first, second))
    first_ip, second_ip, gateway_ip = map(socket.inet_aton, (first.lease.ip, second.lease.ip, "192.168.127.1"))
    capture = Capture(second)
    with contextlib.closing(capture), LightVm(own_service.link_path, "52:54:00:00:02:01") as forger:
        forger.configure()

        def send_honestly(payload: bytes) -> None:
            """And see it arrive."""
            capture.until(payload, lambda: forger.send(forger.frame(payload, EXPERIMENT, second_mac)))

        send_honestly(b"the workers know each other")
        echo = dpkt.ip.IP(
            src=first_ip, dst=socket.inet_aton(second.lease.ip), p=1, ttl=64, data=b"\x08\0\xf7\xff" + bytes(4)
        )
        for _ in range(20):
            forger.send(forger.frame(b"forged", EXPERIMENT, second_mac, first_mac))
            forger.send(forger.frame(b"forged", EXPERIMENT, src=first_mac))
            forger.send(forger.frame(b"forged", EXPERIMENT, src=GATEWAY_MAC))
            forger.send(forger.frame(bytes(echo), dpkt.ethernet.ETH_TYPE_IP, second_mac))
            for ip in (first_ip, gateway_ip):
                forger.send(forger.arp(dpkt.arp.ARP_OP_REPLY, second_ip, second_mac, ip))
        send_honestly(b"all else has come or never will")
        counters = own_service.counters()
    captured = b"".join(capture.frames)
    assert b"forged" not in captured
    assert forger.mac + first_ip not in captured, "an ARP packet of the forger's for the first VM's address"
    assert forger.mac + gateway_ip not in captured
    neighbours = second.namespace.run("ip", "neighbour").stdout
    assert f"{first.lease.ip} dev {second.interface} lladdr {first.mac}" in neighbours
    assert counters["switch.spoofed_mac"] == 60
    assert counters["switch.spoofed_ip"] == 60
    assert f"uses MAC {first.mac}, which is not its own" in own_service.log_text()
    assert reaches(second, first.lease.ip)


def test_fifty_vms_reach_each_other_and_one_that_dies_disturbs_nobody(own_service: Service, attach: Attach) -> None:
    with crowd(own_service.link_path, CROWD) as many:
        sweeper = attach(own_service)
        sweeper.configure()
        assert sweep(sweeper, many) == {vm.ip for vm in many}
        first, *others = many
        first.send(first.frame(b"to everybody", EXPERIMENT))
        wait_for(lambda: all(has(vm, b"to everybody") for vm in others), 10, "the broadcast")
        before = {vm["id"]: vm["worker_pid"] for vm in own_service.get("/v1/vms")["vms"]}
        assert len(before) == CROWD + 1
        assert len(own_service.get("/cam")) == CROWD + 1
        first.link.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: len(own_service.get("/v1/vms")["vms"]) == CROWD, 10, "the VM to be gone")
        os.kill(own_service.vm(str(dpkt.ethernet.mac_to_str(others[0].mac)))["worker_pid"], signal.SIGKILL)
        others[1].send(others[1].frame(b"after that", EXPERIMENT))
        wait_for(lambda: all(has(vm, b"after that") for vm in others[2:]), 10, "the second broadcast")
        assert sweep(sweeper, others[1:]) == {vm.ip for vm in others[1:]}
        after = {vm["id"]: vm["worker_pid"] for vm in own_service.get("/v1/vms")["vms"]}
        assert sum(before[vm_id] != pid for vm_id, pid in after.items()) == 1


def test_vms_on_tap_devices_and_others_reach_each_other(workshop: Path, probe: Path, attach: Attach) -> None:
    """A tap device with offloads gives packets of many segments, whose checksums nobody has computed."""
    with make_host() as host, contextlib.ExitStack() as opened:
        taps = [opened.enter_context(contextlib.closing(TapGuest(workshop, probe))) for _ in range(2)]
        service = opened.enter_context(Service(host, *(f"--listen=tap={guest.url}" for guest in taps)))
        for guest in taps:
            guest.learn_mac()
            guest.configure()
        bridged = attach(service)
        bridged.configure()
        one, other = taps
        download(one, other)
        download(bridged, one)
        download(one, bridged)
        counters = service.counters()
        assert counters["switch.rx_refused"] == 0
        assert counters["switch.tx_frames"] < 2 * TRANSFER / 1500, "packets between tap devices are not cut"


def test_isolated_vms_share_an_address_and_each_has_its_forward(workshop: Path, attach: Attach) -> None:
    with make_host() as host:
        service = Service(host)
        (service.directory / "moorage.yaml").write_text("networks: {default: {mode: isolated}}\n")
        service.arguments = ("--config", str(service.directory / "moorage.yaml"))
        with service:
            guests = [attach(service) for _ in range(2)]
            for number, guest in enumerate(guests):
                assert guest.configure().ip == "192.168.127.2"
                site = workshop / f"site-{number}"
                site.mkdir()
                (site / "name").write_text(f"guest {number}")
                guest.sh(f"busybox httpd -p 80 -h {site}")
                body = {"local": f"127.0.0.1:{8000 + number}", "remote": "192.168.127.2:80", "vm": guest.mac}
                status, text = service.request("POST", "/v1/forwards", body)
                assert status == 201, text
            for number in range(2):
                answer = host.run("busybox", "wget", "-q", "-O", "-", f"http://127.0.0.1:{8000 + number}/name").stdout
                assert answer == f"guest {number}"
            assert not reaches(guests[0], "192.168.127.3")
            assert service.counters()["switch.tx_frames"] == 0
            status, text = service.request("POST", "/v1/forwards", {"local": ":9", "remote": "192.168.127.2:80"})
            assert status == 400
            assert "is isolated" in text


def test_a_vm_that_does_not_read_slows_no_other(own_service: Service, attach: Attach) -> None:
    one, other = attach(own_service), attach(own_service)
    one.configure()
    other.configure()
    path = own_service.link_path
    with LightVm(path, "52:54:00:00:02:02") as slow, LightVm(path, "52:54:00:00:02:03") as flooder:
        slow.configure()
        flooder.configure()
        frame = flooder.frame(bytes(1400), EXPERIMENT, slow.mac)
        for _ in range(8000):
            flooder.send(frame)
        wait_for(lambda: own_service.counters()["switch.tx_dropped"] > 0, 20, "frames to the slow VM to be dropped")
        download(one, other)
        assert reaches(one, other.lease.ip)
