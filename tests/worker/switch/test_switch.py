"""Frames from VM to VM: who gets what, in how many datagrams, and what a slow one costs the others."""

from __future__ import annotations

import os
import socket

import pytest

from tests.worker.framebed import BROADCAST, GATEWAY_IP, LINKS
from tests.worker.switch.lan import Worker, connect, lan
from worker.upcalls import Upcall

STORM_BURST = 500
LEAST_BUFFER = 1 << 17  # the longest datagram between workers has room


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
@pytest.mark.parametrize("to", LINKS)
@pytest.mark.parametrize("link", LINKS)
def test_a_frame_reaches_the_vm_it_is_for_and_no_other(link: str, to: str, readiness: str) -> None:
    with lan(3, (link, to, to), readiness=readiness) as network:
        one, two, three = network.ports
        frames = [
            one.ipv4(two, b"an IPv4 packet"),
            one.frame(two.mac, b"\x60" + bytes(5) + b"\x3b" + os.urandom(1493), 0x86DD),  # IPv6
            one.frame(two.mac, b"x", 0x0003),  # 802.3: a length, not a type
            one.frame(two.mac, b"", 0x88B5),
        ] * 30
        one.send(*frames)
        network.run_until(lambda: len(two.delivered) == len(frames))
        network.settle()
        assert two.delivered == frames
        assert three.delivered == one.delivered == []
        assert two.counter("switch.rx_bytes") == sum(map(len, frames)) == one.counter("switch.tx_bytes")
        assert two.counter("switch.rx_frames") == len(frames) == one.counter("switch.tx_frames")


def test_frames_to_all_reach_all_and_the_gateway() -> None:
    with lan(4) as network:
        one, *others = network.ports
        announcement = one.arp(one.ip)
        frames = [announcement, one.frame(b"\x01\x00\x5e\x00\x00\xfb", b"m"), one.frame(b"\x33\x33\0\0\0\1", b"n")]
        one.send(*frames)
        network.run_until(lambda: all(len(port.delivered) == 3 for port in others))
        assert [port.delivered for port in others] == [frames] * 3
        assert one.expect_upcall(Upcall.FRAME)[1] == announcement


def test_what_concerns_the_gateway_alone_stays() -> None:
    with lan(2) as network:
        one, two = network.ports
        bootp = (68).to_bytes(2, "big") + (67).to_bytes(2, "big") + (308).to_bytes(2, "big") + bytes(302)
        dhcp = one.ipv4(two, bootp, src="0.0.0.0", proto=17)
        offer = one.ipv4(two, bootp[2:4] + bootp[:2] + bootp[4:], proto=17)  # a DHCP server of one's own
        to_all = [BROADCAST + frame[6:] for frame in (dhcp, offer)]
        one.send(one.arp(GATEWAY_IP), *to_all, offer, one.frame(b"\x01\x80\xc2\0\0\x01", b"pause"))
        network.settle()
        assert two.delivered == []
        assert not {name for name in one.changed() if name.startswith("switch.")}
        assert one.changed()["upcalls.queued"] >= 3


def test_a_batch_leaves_in_one_datagram_for_each_peer() -> None:
    with lan(1) as network:
        (one,) = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        frames = [one.frame(worker.mac, bytes([number]) * 1000) for number in range(50)]
        one.offer(*frames)
        one.turn()
        (datagram,) = worker.heard()
        assert datagram == one.wire(*frames)
        assert one.counter("syscalls.switch_send") == 1


def test_frames_for_several_peers_keep_their_order() -> None:
    with lan(3, mtu=9000) as network:
        one, *others = network.ports
        frames = [one.frame(others[number % 2].mac, number.to_bytes(4, "big") * 2000) for number in range(200)]
        one.send(*frames)
        network.run_until(lambda: all(len(port.delivered) == 100 for port in others))
        assert others[0].delivered == frames[0::2]
        assert others[1].delivered == frames[1::2]


def test_the_longest_frame_passes_and_a_longer_one_does_not() -> None:
    with lan(2, mtu=65520) as network:
        one, two = network.ports
        longest = one.frame(two.mac, os.urandom(65520))
        tagged = one.frame(two.mac, b"\0\7\x88\xb5" + os.urandom(65520), 0x8100)
        one.send(longest, tagged, one.frame(two.mac, os.urandom(65525)), longest)
        network.run_until(lambda: len(two.delivered) == 3)
        assert two.delivered == [longest, tagged, longest]
        assert one.counter("ethernet.malformed") == 1


def test_a_mac_that_no_vm_has_is_counted_and_bothers_nobody() -> None:
    with lan(2) as network:
        one, two = network.ports
        one.send(one.frame(b"\x52\x54\0\0\0\x77"))
        network.settle()
        assert two.delivered == []
        assert one.counter("switch.unknown_mac") == 1


def test_a_vm_that_is_gone_gets_nothing_more_and_one_that_comes_again_does() -> None:
    with lan(3) as network:
        one, two, three = network.ports
        one.engine.remove_peer(two.number)
        one.send(one.frame(two.mac), one.frame(three.mac))
        network.run_until(lambda: len(three.delivered) == 1)
        assert one.counter("switch.unknown_mac") == 1
        with pytest.raises(KeyError):
            one.engine.remove_peer(two.number)
        two.engine.remove_peer(one.number)
        connect(one, two)
        one.send(one.frame(two.mac))
        network.run_until(lambda: len(two.delivered) == 1)


def test_a_new_socket_of_a_known_peer_takes_the_place_of_the_old() -> None:
    with lan(2) as network:
        one, two = network.ports
        connect(one, two)
        two.send(two.frame(one.mac))
        network.run_until(lambda: len(one.delivered) == 1)
        assert one.counter("switch.rx_frames") == 1


def test_peers_are_refused_that_cannot_be() -> None:
    with lan(1) as network:
        (one,) = network.ports
        with pytest.raises(ValueError, match="peer 5"):
            one.engine.add_peer(5, -1, b"", [])
        with pytest.raises(OSError, match="peer 5"):
            one.engine.add_peer(5, 1 << 20, b"", [])
        with pytest.raises(ValueError, match="MAC"):
            one.engine.set_guest(b"12345", [])
        with pytest.raises(ValueError, match="already"):
            one.engine.join_switch(True)


def test_a_vm_that_does_not_read_costs_the_others_nothing() -> None:
    with lan(4, mtu=9000) as network:
        one, two, slow, four = network.ports
        slow.reading = False
        big = bytes(8000)
        for _ in range(300):
            one.send(*[one.frame(slow.mac, big)] * 4, one.frame(two.mac, big))
            four.send(four.frame(slow.mac, big), four.frame(two.mac, big))
            for port in network.ports:
                port.turn()
        network.run_until(lambda: len(two.delivered) == 600)
        assert one.counter("switch.tx_dropped") > 0
        assert one.counter("switch.tx_frames") + one.counter("switch.tx_dropped") == 1500
        slow.reading = True
        arrived = one.counter("switch.tx_frames") - 300 + four.counter("switch.tx_frames") - 300
        network.run_until(lambda: len(slow.delivered) == arrived)


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
def test_a_burst_that_a_peers_socket_has_no_room_for_arrives_whole_and_in_order(readiness: str) -> None:
    with lan(3, readiness=readiness) as network:
        one, two, three = network.ports
        connect(one, two, socket_buffer=LEAST_BUFFER)
        two.reading = False
        frames = [one.frame(two.mac, number.to_bytes(4, "big") * 350) for number in range(1500)]
        for number, frame in enumerate(frames):
            one.send(frame, one.frame(three.mac, number.to_bytes(4, "big")))
        network.run_until(lambda: len(three.delivered) == len(frames))
        two.reading = True
        one.send(last := one.frame(two.mac, b"sent while others wait"))
        network.run_until(lambda: len(two.delivered) == len(frames) + 1)
        assert two.delivered == [*frames, last]
        assert one.counter("switch.tx_dropped") == 0
        sent = one.counter("syscalls.switch_send")
        one.send(one.frame(two.mac))
        network.run_until(lambda: len(two.delivered) == len(frames) + 2)
        assert one.counter("syscalls.switch_send") == sent + 1


def test_what_waits_for_all_peers_together_is_bounded() -> None:
    with lan(1) as network:
        (one,) = network.ports
        macs = [bytes((0x52, 0x54, 0, 0, 1, number)) for number in range(8)]
        others = []
        for number, mac in enumerate(macs):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            one.keep(ours)
            others.append(ours)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LEAST_BUFFER)
            one.engine.add_peer(100 + number, theirs.detach(), mac, [])
        for _ in range(300):
            one.send(*[one.frame(mac, bytes(1400)) for mac in macs for _ in range(10)])
            one.turn()
        one.settle()
        taken = one.counter("switch.tx_bytes")
        assert 16 << 20 <= taken < 19 << 20, "the backlogs, and what the sockets themselves take"
        one.engine.remove_peer(100)
        for _ in range(300):
            one.send(*[one.frame(macs[7], bytes(1400))] * 10)
            one.turn()
        one.settle()
        assert one.counter("switch.tx_bytes") > taken, "what waited for a VM that is gone takes no room"


def test_a_storm_of_broadcasts_is_limited_and_unicast_goes_on() -> None:
    with lan(3) as network:
        one, two, three = network.ports
        storm = [one.frame(BROADCAST, number.to_bytes(4, "big")) for number in range(5000)]
        one.send(*storm, one.frame(two.mac))
        network.run_until(lambda: bool(two.delivered) and two.delivered[-1][:6] == two.mac)
        network.settle()
        assert STORM_BURST <= len(three.delivered) < 4000
        assert one.counter("switch.storm_dropped") == 5000 - len(three.delivered)


def test_a_dead_workers_socket_loses_frames_and_nothing_else() -> None:
    with lan(2) as network:
        one, two = network.ports
        worker = Worker(one, b"\x52\x54\0\0\0\x09", "192.168.127.9")
        worker.sock.close()
        one.send(one.frame(worker.mac), one.frame(two.mac))
        network.run_until(lambda: len(two.delivered) == 1)
        assert one.counter("switch.tx_dropped") == 1


def test_a_frame_that_python_hands_back_is_not_sent_to_peers_again() -> None:
    with lan(2) as network:
        one, two = network.ports
        frame = BROADCAST + one.ipv4(two, bytes(8), proto=17)[6:]
        one.engine.inject(frame)
        network.settle()
        assert two.delivered == []


def test_without_a_network_of_others_their_frames_are_nobodys() -> None:
    with lan(1) as network:
        (one,) = network.ports
        one.send(one.frame(BROADCAST), one.frame(b"\x52\x54\0\0\0\x77"))
        one.settle()
        assert one.counter("syscalls.switch_send") == 0


def test_datagrams_that_came_before_the_peer_was_known_are_read() -> None:
    with lan(1) as network:
        (one,) = network.ports
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours:
            frame = one.mac + b"\x52\x54\0\0\0\x09" + b"\x88\xb5early"
            ours.send(len(frame).to_bytes(4, "big") + frame)
            one.engine.add_peer(9, theirs.detach(), frame[6:12], [])
            network.run_until(lambda: one.delivered == [frame])
