"""Nobody speaks for another VM, nor for the gateway; not even a worker that a guest has broken."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from tests.worker.framebed import BROADCAST, GATEWAY_IP, GATEWAY_MAC, wide
from tests.worker.switch.lan import Lan, Port, Worker, lan
from worker.upcalls import Upcall

HOST_IP = "192.168.127.254"
VLAN, SERVICE = b"\x81\0", b"\x88\xa8"
TAG = b"\0\0"
"""Of VLAN 0, which Linux takes for none."""


def tagged(frame: bytes, *types: bytes) -> bytes:
    return frame[:12] + b"".join(kind + TAG for kind in types) + frame[12:]


def in_snap(frame: bytes, organization: bytes = bytes(3)) -> bytes:
    """As on a network of 802.3."""
    return frame[:12] + (len(frame) - 6).to_bytes(2, "big") + b"\xaa\xaa\x03" + organization + frame[12:]


FORGERIES: dict[str, tuple[str, Callable[[Port, Port, Port], bytes]]] = {
    "source MAC": ("mac", lambda me, one, two: me.frame(two.mac)[:6] + one.mac + me.frame(two.mac)[12:]),
    "source MAC to all": ("mac", lambda me, one, two: BROADCAST + one.mac + me.frame(two.mac)[12:]),
    "the gateway's MAC": ("mac", lambda me, one, two: two.mac + GATEWAY_MAC + me.frame(two.mac)[12:]),
    "IPv4 source": ("ip", lambda me, one, two: me.ipv4(two, b"", src=one.ip)),
    "the gateway's address": ("ip", lambda me, one, two: me.ipv4(two, b"", src=GATEWAY_IP)),
    "the host's alias": ("ip", lambda me, one, two: me.ipv4(two, b"", src=HOST_IP)),
    "ARP sender address": ("ip", lambda me, one, two: me.arp(two.ip, sender_ip=one.ip, op=2)),
    "ARP for the gateway": ("ip", lambda me, one, two: me.arp(two.ip, sender_ip=GATEWAY_IP, op=2)),
    "ARP sender MAC": ("mac", lambda me, one, two: me.arp(two.ip, sender_mac=one.mac, op=2)),
    "ARP with the gateway's MAC": ("mac", lambda me, one, two: me.arp(two.ip, sender_mac=GATEWAY_MAC, op=2)),
    "IPv4 behind a tag": ("ip", lambda me, one, two: tagged(me.ipv4(two, b"", src=one.ip), VLAN)),
    "ARP behind two tags": (
        "ip",
        lambda me, one, two: tagged(me.arp(two.ip, sender_ip=one.ip), SERVICE, VLAN),
    ),
    "ARP behind three tags": ("ip", lambda me, one, two: tagged(me.arp(two.ip, sender_ip=one.ip), VLAN, VLAN, VLAN)),
    "IPv4 behind ten tags": ("ip", lambda me, one, two: tagged(me.ipv4(two, b"", src=one.ip), *[VLAN] * 10)),
    "IPv4 in SNAP": ("ip", lambda me, one, two: in_snap(me.ipv4(two, b"", src=one.ip))),
    "ARP in a bridge's SNAP": (
        "ip",
        lambda me, one, two: in_snap(me.arp(two.ip, sender_ip=one.ip), b"\0\0\xf8"),
    ),
    "ARP behind a tag in SNAP": ("ip", lambda me, one, two: in_snap(tagged(me.arp(two.ip, sender_ip=one.ip), VLAN))),
    "ARP in SNAP behind a tag": ("ip", lambda me, one, two: tagged(in_snap(me.arp(two.ip, sender_ip=one.ip)), VLAN)),
    "ARP in SNAP behind two tags": (
        "ip",
        lambda me, one, two: tagged(in_snap(me.arp(two.ip, sender_ip=one.ip)), VLAN, VLAN),
    ),
    "a packet without a sender": ("ip", lambda me, one, two: me.frame(two.mac, b"\x45\0\0", 0x0800)),
    "ARP cut short": ("ip", lambda me, one, two: me.arp(two.ip)[:30]),
}


@pytest.fixture(params=FORGERIES)
def forgery(request: pytest.FixtureRequest) -> tuple[str, Callable[[Port, Port, Port], bytes]]:
    return FORGERIES[request.param]


def map_host(network: Lan) -> None:
    for port in network.ports:
        port.engine.map_address(wide(HOST_IP), wide("127.0.0.1"))


def test_nothing_forged_leaves_its_worker(forgery: tuple[str, Callable[[Port, Port, Port], bytes]]) -> None:
    what, forge = forgery
    with lan(3) as network:
        one, two, forger = network.ports
        map_host(network)
        honest = forger.ipv4(two, b"honest")
        forger.send(forge(forger, one, two), honest)
        network.run_until(lambda: bool(two.delivered))
        network.settle()
        assert two.delivered == [honest]
        assert one.delivered == []
        assert forger.counter(f"switch.spoofed_{what}") == 1


def test_nothing_forged_is_taken_from_a_broken_worker(
    forgery: tuple[str, Callable[[Port, Port, Port], bytes]],
) -> None:
    _, forge = forgery
    with lan(3) as network:
        one, two, forger = network.ports
        map_host(network)
        broken = Worker(two, forger.mac, forger.ip)
        honest = forger.ipv4(two, b"honest")
        broken.send(honest, forge(forger, one, two))
        broken.send(honest)
        network.run_until(lambda: bool(two.delivered))
        network.settle()
        assert two.delivered == [honest]
        assert two.counter("switch.rx_refused") == 1


def test_what_is_wrapped_and_tells_the_truth_passes() -> None:
    with lan(2) as network:
        one, two = network.ports
        packet = one.ipv4(two, b"")
        spanning_tree = b"\0\x07\x42\x42\x03" + bytes(4)
        discovery = b"\0\x10\xaa\xaa\x03\0\0\x0c\x20\0" + bytes(8)
        frames = [
            tagged(packet, VLAN),
            tagged(packet, SERVICE, VLAN),
            in_snap(packet),
            tagged(in_snap(packet), VLAN),
            two.mac + one.mac + spanning_tree,
            two.mac + one.mac + discovery,
            two.mac + one.mac + VLAN,
        ]
        one.send(*frames)
        network.run_until(lambda: len(two.delivered) == len(frames))
        assert two.delivered == frames


def test_a_peers_address_that_is_not_known_yet_is_taken_unless_it_is_known_as_anothers() -> None:
    with lan(2) as network:
        one, two = network.ports
        three = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        packets = [one.ipv4(one, b"", src=ip) for ip in (one.ip, two.ip, "192.168.127.10")]
        frames = [packet[:6] + three.mac + packet[12:] for packet in packets]
        for frame in frames:
            three.send(frame)
        network.run_until(lambda: bool(one.delivered))
        network.settle()
        assert one.delivered == frames[2:]
        assert one.counter("switch.rx_refused") == 2


def test_nobody_is_the_gateway_where_port_security_is_off_either() -> None:
    with lan(3, port_security=False) as network:
        one, two, forger = network.ports
        map_host(network)
        for name, (_, forge) in FORGERIES.items():
            if "gateway" in name or "host" in name:
                forger.send(forge(forger, one, two))
        network.settle()
        assert two.delivered == one.delivered == []


def ipv6(payload: bytes, next_header: int) -> bytes:
    """From a link-local address to all nodes."""
    source, all_nodes = bytes.fromhex("fe80" + "00" * 13 + "09"), bytes.fromhex("ff02" + "00" * 13 + "01")
    return struct.pack("!IHBB", 6 << 28, len(payload), next_header, 255) + source + all_nodes + payload


def udp(source: int, target: int) -> bytes:
    return struct.pack("!HHHH", source, target, 8, 0)


ADVERTISEMENT = b"\x86\0" + bytes(14)
FROM_ROUTERS = {
    "router advertisement": ipv6(ADVERTISEMENT, 58),
    "redirect": ipv6(b"\x89\0" + bytes(38), 58),
    "DHCPv6 server": ipv6(udp(547, 546), 17),
    "behind extension headers": ipv6(
        b"\x2b\0" + bytes(6) + b"\x3c\1" + bytes(14) + b"\x3a\0" + bytes(6) + ADVERTISEMENT, 0
    ),
    "behind an authentication header": ipv6(b"\x3a\4" + bytes(22) + ADVERTISEMENT, 51),
    "in a first fragment": ipv6(b"\x3a\0\0\1" + bytes(4) + ADVERTISEMENT, 44),
    "whose first fragment does not say what it is": ipv6(b"\x3c\0\0\1" + bytes(4) + b"\x3a\4" + bytes(6), 44),
    "with more headers than anybody needs": ipv6(b"\0\0" + bytes(6) + (b"\0\0" + bytes(6)) * 9, 0),
    "ICMPv6 cut off": ipv6(b"", 58),
    "UDP cut off": ipv6(udp(1, 2)[:7], 17),
    "an extension cut off": ipv6(b"\x3a\0", 60),
}
FROM_HOSTS = {
    "router solicitation": ipv6(b"\x85\0" + bytes(6), 58),
    "neighbour solicitation": ipv6(b"\x87\0" + bytes(22), 58),
    "neighbour advertisement": ipv6(b"\x88\0" + bytes(22), 58),
    "echo": ipv6(b"\x80\0" + bytes(6), 58),
    "listener report behind its option": ipv6(b"\x3a\0\5\2\0\0\1\0" + b"\x8f\0" + bytes(26), 0),
    "DHCPv6 client": ipv6(udp(546, 547), 17),
    "TCP": ipv6(bytes(20), 6),
    "ESP": ipv6(bytes(20), 50),
    "a later fragment": ipv6(b"\x3a\0\0\x10" + bytes(4) + ADVERTISEMENT, 44),
    "nothing": ipv6(b"", 59),
    "a header cut short, which nobody takes": ipv6(ADVERTISEMENT, 58)[:39],
    "IPv4 called IPv6, which nobody takes": b"\x45" + ipv6(ADVERTISEMENT, 58)[1:],
}


@pytest.mark.parametrize("packet", FROM_ROUTERS.values(), ids=FROM_ROUTERS)
@pytest.mark.parametrize("tags", [(), (SERVICE, VLAN)], ids=["plain", "tagged"])
def test_no_vm_is_anothers_ipv6_router(packet: bytes, tags: tuple[bytes, ...]) -> None:
    with lan(2) as network:
        one, two = network.ports
        broken = Worker(two, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        forged = tagged(one.frame(BROADCAST, packet, 0x86DD), *tags)
        honest = one.frame(two.mac)
        one.send(forged, honest)
        broken.send(forged[:6] + broken.mac + forged[12:])
        network.run_until(lambda: bool(two.delivered))
        network.settle()
        assert two.delivered == [honest]
        assert one.counter("switch.spoofed_router") == 1
        assert two.counter("switch.rx_refused") == 1


def test_what_hosts_say_over_ipv6_passes() -> None:
    with lan(2) as network:
        one, two = network.ports
        frames = [one.frame(BROADCAST, packet, 0x86DD) for packet in FROM_HOSTS.values()]
        one.send(*frames)
        network.run_until(lambda: len(two.delivered) == len(frames))
        assert two.delivered == frames


def test_a_vm_may_be_a_router_where_port_security_is_off() -> None:
    with lan(2, port_security=False) as network:
        one, two = network.ports
        one.send(frame := one.frame(BROADCAST, FROM_ROUTERS["router advertisement"], 0x86DD))
        network.run_until(lambda: two.delivered == [frame])


def test_nothing_leaves_until_the_supervisor_has_said_who_the_guest_is() -> None:
    with lan(2) as network:
        one, two = network.ports
        one.engine.set_guest(b"", [])
        one.send(one.ipv4(two, b""))
        network.settle()
        assert two.delivered == []
        assert one.counter("switch.unconfirmed") == 1
        assert one.expect_upcall(Upcall.GUEST)[1:] == (one.mac, wide(one.ip))
        one.engine.set_guest(one.mac, [wide(one.ip)])
        one.send(one.ipv4(two, b""))
        network.run_until(lambda: len(two.delivered) == 1)


def test_an_address_that_is_not_granted_is_asked_for_but_not_with_every_frame() -> None:
    with lan(2) as network:
        one, two = network.ports
        one.engine.set_guest(one.mac, [])
        one.send(*[one.arp(two.ip)] * 50)
        network.settle()
        told = [upcall for upcall in one.upcalls if upcall[0] == Upcall.GUEST and upcall[2]]
        assert told == [(Upcall.GUEST, one.mac, wide(one.ip))]
        assert one.counter("switch.unconfirmed") == 50


def test_a_probe_claims_nothing_and_passes() -> None:
    with lan(2) as network:
        one, two = network.ports
        probe = one.arp("192.168.127.77", sender_ip="0.0.0.0")
        one.send(probe)
        network.run_until(lambda: two.delivered == [probe])


def test_a_vm_may_have_several_addresses() -> None:
    with lan(2) as network:
        one, two = network.ports
        addresses = [wide(ip) for ip in (one.ip, "192.168.127.80", "192.168.127.81")]
        one.engine.set_guest(one.mac, addresses)
        two.engine.add_peer(one.number, -1, one.mac, addresses)
        one.send(*[one.ipv4(two, b"", src=ip) for ip in ("192.168.127.80", "192.168.127.81", "192.168.127.82")])
        network.run_until(lambda: len(two.delivered) == 2)
        network.settle()
        assert len(two.delivered) == 2
        with pytest.raises(ValueError, match="at most 16"):
            one.engine.set_guest(one.mac, [wide(one.ip)] * 17)


def test_without_port_security_macs_behind_a_vm_are_learned() -> None:
    with lan(3, port_security=False) as network:
        one, two, three = network.ports
        nested = b"\x52\x54\0\0\1\1"
        from_nested = two.mac + nested + b"\x88\xb5hello"
        one.send(from_nested)
        network.run_until(lambda: two.delivered == [from_nested])
        answer = two.frame(nested, b"hello to you")
        two.send(answer)
        network.run_until(lambda: one.delivered == [answer])
        assert three.delivered == []
        three.send(three.frame(nested))  # it has not heard it yet: everybody may have it
        network.run_until(lambda: len(one.delivered) == 2 and len(two.delivered) == 2)


def test_without_port_security_nobody_takes_a_mac_that_the_supervisor_gave_to_another() -> None:
    with lan(3, port_security=False) as network:
        one, two, three = network.ports
        three.send(two.mac + one.mac + b"\x88\xb5mine now")
        network.run_until(lambda: len(two.delivered) == 1)
        two.send(two.frame(one.mac))
        network.run_until(lambda: len(one.delivered) == 1)
        assert three.delivered == []


BAD_LENGTHS = {
    "empty frame": bytes(4),
    "half a length": b"\0\0",
    "longer than the datagram": b"\0\0\0\x40" + bytes(20),
    "shorter than a header": b"\0\0\0\x0d" + bytes(13),
    "longer than the MTU": b"\0\0\x06\x00" + bytes(0x600),
    "with its top bit": b"\x80\0\0\x20" + bytes(32),
    "all ones": b"\xff" * 64,
}


@pytest.mark.parametrize("tail", BAD_LENGTHS.values(), ids=BAD_LENGTHS)
@pytest.mark.parametrize("link", ["stream32", "datagram"])
def test_a_datagram_with_a_wrong_length_in_it_is_refused_whole(link: str, tail: bytes) -> None:
    with lan(1, (link,)) as network:
        (one,) = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        frame = one.mac + worker.mac + b"\x88\xb5good"
        good = len(frame).to_bytes(4, "big") + frame
        worker.sock.send(good + tail)
        worker.sock.send(tail + good)
        worker.sock.send(b"")
        worker.send(frame)
        network.run_until(lambda: bool(one.delivered))
        network.settle()
        assert one.delivered == [frame]
        assert one.counter("switch.rx_refused") == 2


def test_a_datagram_that_is_too_long_is_refused() -> None:
    with lan(1) as network:
        (one,) = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        frame = one.mac + worker.mac + b"\x88\xb5" + bytes(1000)
        worker.send(*[frame] * 140)
        worker.send(frame)
        network.run_until(lambda: one.delivered == [frame])
        assert one.counter("switch.rx_refused") == 1


def test_noise_from_a_broken_worker_does_no_harm() -> None:
    chance = random.Random(4)
    with lan(2) as network:
        one, _ = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        frame = one.mac + worker.mac + b"\x08\0" + bytes(60)
        for _ in range(2000):
            data = bytearray((len(frame).to_bytes(4, "big") + frame) * chance.randrange(1, 4))
            for _ in range(chance.randrange(1, 5)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            worker.sock.send(data[: chance.randrange(len(data) + 1)])
            one.turn()
        worker.send(one.mac + worker.mac + b"\x88\xb5the end")
        network.run_until(lambda: bool(one.delivered) and one.delivered[-1].endswith(b"the end"))
