"""gvproxy's DHCP, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c), and what Moorage does better."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from socket import inet_aton

import dpkt
import pytest

from tests.guests.bare import BareVm, Datagram
from tests.guests.host import make_host
from tests.guests.service import Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

GATEWAY, HOST, BROADCAST = "192.168.127.1", "192.168.127.254", "192.168.127.255"
STATIC_IP, STATIC_MAC = "192.168.127.50", "5a:94:ef:e4:0c:50"
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
_macs = (f"5a:94:ef:e4:20:{number:02x}" for number in itertools.count())


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a static lease, on a host without search domains."""
    file: Path = tmp_path_factory.mktemp("configuration") / "moorage.yaml"
    file.write_text(f'dhcp-static-leases: {{{STATIC_IP}: "{STATIC_MAC.upper()}"}}\n')
    with make_host() as host:
        host.resolv_conf.write_text("nameserver 127.0.0.1\n")
        with Service(host, "--config", str(file)) as service:
            yield service


Attach = Callable[..., BareVm]


@pytest.fixture
def attach() -> Iterator[Attach]:
    vms: list[BareVm] = []

    def attach(service: Service, mac: str = "", timeout: float = 10.0) -> BareVm:
        vms.append(BareVm(service.link_path, mac or next(_macs), timeout))
        return vms[-1]

    yield attach
    for vm in vms:
        vm.close()


def parse(reply: Datagram) -> dpkt.dhcp.DHCP:
    return dpkt.dhcp.DHCP(reply.payload)


def options(reply: Datagram) -> dict[int, bytes]:
    return dict(parse(reply).opts)


def kind(reply: Datagram) -> int:
    return options(reply)[53][0]


def address(reply: Datagram) -> str:
    return str(IPv4Address(parse(reply).yiaddr))


def request(vm: BareVm, ip: str) -> Datagram:
    return vm.dhcp(vm.dhcp_message(REQUEST, (50, inet_aton(ip)), (54, inet_aton(GATEWAY))))


def test_non_dhcp_is_ignored(service: Service, attach: Attach) -> None:
    """Parsed as DHCP/BOOTP; non-DHCP ignored."""
    vm = attach(service)
    good = vm.dhcp_message(DISCOVER)
    for payload in (b"", b"x" * 300, good[:200], good[:236] + b"\0\0\0\0" + good[240:], b"\2" + good[1:]):
        vm.send_udp("0.0.0.0", 68, "255.255.255.255", 67, payload)
    assert kind(vm.dhcp(vm.dhcp_message(DISCOVER, transaction=7))) == OFFER


def test_a_mac_keeps_its_address_and_a_new_one_gets_the_lowest(service: Service, attach: Attach) -> None:
    """yiaddr = existing address of chaddr, else lowest free host number"""
    vm = attach(service)
    first = vm.discover()
    assert address(request(vm, first)) == first
    gateway = IPv4Address(GATEWAY)
    lower = {str(gateway + number) for number in range(1, int(IPv4Address(first)) - int(gateway))}
    assert lower <= service.get("/leases").keys()
    vm.close()
    assert attach(service, vm.mac.hex(":")).discover() == first


def test_discover_is_offered_and_request_acknowledged(service: Service, attach: Attach) -> None:
    """DISCOVER⇒OFFER, REQUEST⇒ACK"""
    vm = attach(service)
    offer = vm.dhcp(vm.dhcp_message(DISCOVER))
    assert kind(offer) == OFFER
    reply = request(vm, address(offer))
    assert (kind(reply), address(reply)) == (ACK, address(offer))


def test_release_is_silent_and_honoured(service: Service, attach: Attach) -> None:
    """RELEASE silent; better: honour RELEASE"""
    vm = attach(service)
    ip = address(request(vm, vm.discover()))
    assert service.get("/leases")[ip] == vm.mac.hex(":")
    message = vm.dhcp_message(RELEASE, (54, inet_aton(GATEWAY)), ciaddr=ip, transaction=9)
    vm.send_udp(ip, 68, GATEWAY, 67, message)
    wait_for(lambda: ip not in service.get("/leases"), 5, "the lease to end")
    vm.link.settimeout(0.3)
    with pytest.raises(TimeoutError):
        next(vm.datagrams(68))


@pytest.mark.parametrize("type_", [OFFER, DECLINE, ACK, NAK, 9])
def test_other_types_are_not_answered(service: Service, attach: Attach, type_: int) -> None:
    """other types error log; DECLINE: no reply"""
    vm = attach(service)
    vm.send_udp("0.0.0.0", 68, "255.255.255.255", 67, vm.dhcp_message(type_, transaction=8))
    reply = vm.dhcp(vm.dhcp_message(DISCOVER, transaction=9))
    assert (kind(reply), parse(reply).xid) == (OFFER, 9)


@pytest.mark.parametrize("dst", ["255.255.255.255", GATEWAY, BROADCAST])
def test_the_server_listens_on_every_address_of_its_own(service: Service, attach: Attach, dst: str) -> None:
    """UDP 67 on any address."""
    vm = attach(service)
    vm.send_udp("0.0.0.0", 68, dst, 67, vm.dhcp_message(DISCOVER))
    assert kind(next(vm.datagrams(68))) == OFFER


def test_what_is_echoed_and_what_is_zero(service: Service, attach: Attach) -> None:
    """Echoed: op flipped, htype, xid, chaddr, flags, giaddr, options 61 and 82; zero: secs, ciaddr, siaddr, sname,
    file, hops."""
    vm = attach(service)
    ip = address(request(vm, vm.discover()))
    asked = bytearray(
        vm.dhcp_message(*(REQUEST, (61, b"\1client"), (82, b"\1\2ab")), transaction=0xA1B2C3D4, flags=0x8000, ciaddr=ip)
    )
    asked[3] = 4  # hops
    asked[8:10] = b"\0\7"  # secs
    asked[44:48] = asked[108:112] = b"name"
    reply = vm.dhcp(bytes(asked), src=ip)
    answer = parse(reply)
    assert kind(reply) == ACK
    assert (answer.op, answer.hrd, answer.hln, answer.xid, answer.flags) == (2, 1, 6, 0xA1B2C3D4, 0x8000)
    assert (answer.chaddr, answer.hops, answer.secs, answer.ciaddr, answer.siaddr) == (vm.mac, 0, 0, 0, 0)
    assert reply.payload[34:236] == bytes(202)
    assert (options(reply)[61], options(reply)[82]) == (b"\1client", b"\1\2ab")


def test_the_relays_address_is_echoed_and_answered(service: Service, attach: Attach) -> None:
    """Echoed: giaddr; RFC 2131 4.1: a relay is answered at its address, port 67"""
    vm = attach(service)
    message = vm.dhcp_message(DISCOVER, giaddr="192.168.127.77")
    vm.send_udp("192.168.127.77", 67, GATEWAY, 67, message)
    reply = next(vm.datagrams(67))
    assert (reply.dst, str(IPv4Address(parse(reply).giaddr))) == ("192.168.127.77", "192.168.127.77")


def test_options_ascend_and_the_relays_is_last(service: Service, attach: Attach) -> None:
    """Options ascending, 82 last: 1 mask, 3 gw, 6 gw, 26 mtu, 51=3600, 53, 54 gw, 61 if sent, 119 (uncompressed
    labels); ours besides: 15 the first search domain, 42 NTP on the gateway"""
    vm = attach(service)
    reply = vm.dhcp(vm.dhcp_message(DISCOVER, (82, b"\1\1a"), (61, b"\1x")))
    gateway = inet_aton(GATEWAY)
    assert [code for code, _ in parse(reply).opts] == [1, 3, 6, 15, 26, 42, 51, 53, 54, 61, 119, 82]
    told = options(reply)
    assert (told[1], told[3], told[6], told[42], told[54]) == (inet_aton("255.255.255.0"), *[gateway] * 4)
    assert (told[26], told[51]) == ((1500).to_bytes(2, "big"), (3600).to_bytes(4, "big"))
    assert (told[15], told[119]) == (b"lab.test", b"\3lab\4test\0\7example\4test\0")


def test_without_search_domains_nothing_is_said_of_them(configured: Service, attach: Attach) -> None:
    """119 always (zero length if no domains); better: no empty option 119"""
    vm = attach(configured)
    reply = vm.dhcp(vm.dhcp_message(DISCOVER))
    assert [code for code, _ in parse(reply).opts] == [1, 3, 6, 26, 42, 51, 53, 54]


def test_a_reply_has_300_bytes_at_least(service: Service, attach: Attach) -> None:
    """Padded to 300."""
    vm = attach(service)
    assert len(request(vm, "10.0.0.2").payload) == 300
    assert len(vm.dhcp(vm.dhcp_message(DISCOVER, (61, b"c" * 200), transaction=2)).payload) > 300


def test_a_client_without_address_hears_a_broadcast(service: Service, attach: Attach) -> None:
    """From gateway:67 to the request's source port; source 0.0.0.0 ⇒ 255.255.255.255 and Ethernet broadcast."""
    vm = attach(service)
    for flags in (0, 0x8000):
        reply = vm.dhcp(vm.dhcp_message(DISCOVER, flags=flags), sport=1068)
        assert (reply.src, reply.sport, reply.dst) == (GATEWAY, 67, "255.255.255.255")
        assert reply.dst_mac == b"\xff" * 6


def test_a_client_with_an_address_is_answered_there(service: Service, attach: Attach) -> None:
    """From gateway:67 to the request's source port"""
    vm = attach(service)
    ip = address(request(vm, vm.discover()))
    reply = vm.dhcp(vm.dhcp_message(REQUEST, ciaddr=ip), src=ip)
    assert (kind(reply), reply.src, reply.dst, reply.dst_mac) == (ACK, GATEWAY, ip, vm.mac)


@pytest.mark.parametrize("ip", ["192.168.127.0", GATEWAY, HOST, BROADCAST])
def test_what_is_no_guests_address_is_never_handed_out(service: Service, attach: Attach, ip: str) -> None:
    """never hand out the host alias, broadcast or network address"""
    vm = attach(service)
    assert address(vm.dhcp(vm.dhcp_message(DISCOVER, (50, inet_aton(ip))))) != ip
    assert kind(request(vm, ip)) == NAK


def test_a_wrong_request_is_refused(service: Service, attach: Attach) -> None:
    """NAK a wrong REQUEST"""
    holder, vm = attach(service), attach(service)
    taken = address(request(holder, holder.discover()))
    own = address(request(vm, vm.discover()))
    for wrong in (taken, "10.0.0.2", "192.168.127.200"):
        reply = request(vm, wrong)
        assert (kind(reply), address(reply), reply.dst) == (NAK, "0.0.0.0", "255.255.255.255")
    assert kind(request(vm, own)) == ACK


def test_a_request_for_another_server_is_left_to_it(service: Service, attach: Attach) -> None:
    """RFC 2131 4.3.2: the client chose another server"""
    vm = attach(service, timeout=0.3)
    with pytest.raises(TimeoutError):
        vm.dhcp(vm.dhcp_message(REQUEST, (50, inet_aton("192.168.127.9")), (54, inet_aton("192.168.127.7"))))


def test_inform_allocates_nothing(service: Service, attach: Attach) -> None:
    """do not allocate on INFORM"""
    before = service.get("/leases")
    vm = attach(service)
    reply = vm.dhcp(vm.dhcp_message(INFORM, ciaddr="192.168.127.99"), src="192.168.127.99")
    assert (kind(reply), address(reply), 51 in options(reply)) == (ACK, "0.0.0.0", False)
    assert service.get("/leases") == before


def test_an_offer_that_is_not_taken_is_no_lease_for_long(service: Service, attach: Attach) -> None:
    """expire leases (an hour, or a minute for an offer; the clockwork is tested in tests/supervisor/test_leases.py)"""
    vm = attach(service)
    vm.discover()
    (offered,) = (lease for lease in service.get("/v1/leases")["leases"] if lease["mac"] == vm.mac.hex(":"))
    request(vm, offered["ip"])
    (taken,) = (lease for lease in service.get("/v1/leases")["leases"] if lease["mac"] == vm.mac.hex(":"))
    assert 3500 < taken["expires_at"] - offered["expires_at"] <= 3600


def test_leases_name_gateway_and_guests(service: Service, attach: Attach) -> None:
    """`/services/dhcp/leases`, `/leases`: `{"ip":"mac"}` incl. gateway"""
    vm = attach(service)
    ip = address(request(vm, vm.discover()))
    for path in ("/leases", "/services/dhcp/leases"):
        for method in ("GET", "POST"):
            status, text = service.request(method, path)
            assert (status, text[-1]) == (200, "\n")
            assert f'"{GATEWAY}":"5a:94:ef:e4:0c:dd"' in text
            assert f'"{ip}":"{vm.mac.hex(":")}"' in text


def test_static_leases_are_listed_and_kept(configured: Service, attach: Attach) -> None:
    """`/leases`: incl. static; `dhcpStaticLeases{ip:mac}` — in any spelling of the MAC"""
    assert configured.get("/leases")[STATIC_IP] == STATIC_MAC
    other = attach(configured)
    assert kind(request(other, STATIC_IP)) == NAK
    vm = attach(configured, STATIC_MAC)
    assert vm.discover() == STATIC_IP
    assert kind(request(vm, STATIC_IP)) == ACK
    assert configured.get("/leases")[STATIC_IP] == STATIC_MAC


def test_ntp_answers_where_dhcp_says(service: Service, attach: Attach) -> None:
    """users' item 26: answer NTP on the gateway from the host clock and advertise it by DHCP option 42"""
    vm = attach(service)
    offer = vm.dhcp(vm.dhcp_message(DISCOVER))
    server = str(IPv4Address(options(offer)[42]))
    vm.send_udp(address(offer), 1123, server, 123, bytes([0x23]) + bytes(39) + b"originat")
    answer = next(vm.datagrams(1123))
    assert (answer.src, answer.sport) == (server, 123)
    assert answer.payload[24:32] == b"originat"
