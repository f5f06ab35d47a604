"""Nobody speaks for another VM, nor for the gateway; not even a worker that a guest has broken."""

from __future__ import annotations

import random
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
