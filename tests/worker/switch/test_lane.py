"""What is long goes from worker to worker through memory they share; neither can do the other harm by it."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import socket
from collections.abc import Callable

import pytest

from tests.worker import vnet
from tests.worker.framebed import attempt, wide
from tests.worker.switch.lan import Port, connect, lan
from tests.worker.switch.lanes import (
    FRAME,
    HEAD,
    IN_LANE,
    IP,
    MAC,
    PAGE,
    REFERENCE_LEN,
    RING,
    START,
    Receiver,
    Sender,
    batch,
    long_message,
)  # fmt: skip
from tests.worker.switch.test_offloads import OFFLOADED
from tests.worker.test_engine_capture import Capture

# --- sending


def test_only_its_place_goes_through_the_socket_and_that_for_long_batches_alone() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Receiver(one)
        short, long = one.frame(worker.mac), long_message(one, worker, os.urandom(60_000))
        one.offer(short)
        one.turn()
        assert worker.batches() == [(len(short).to_bytes(4, "big") + short, -1)]
        for expected in ((batch(long), START + 4 + len(long)), (batch(long), START + 8 + 2 * len(long))):
            one.link.send(long)
            one.turn()
            assert worker.batches() == [expected]
        assert worker.lanes == 1
        assert one.counter("switch.tx_bytes") == len(short) + 2 * len(long)


def test_a_ring_that_is_full_leaves_the_rest_to_the_socket_until_there_is_room() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Receiver(one)
        message = long_message(one, worker, bytes(60_000))
        fits = RING // (4 + len(message))

        def positions(count: int) -> list[int]:
            for _ in range(count):
                one.link.send(message)
                one.turn()
            batches = worker.batches()
            assert [data for data, _ in batches] == [batch(message)] * count
            return [position for _, position in batches]

        taken = positions(fits)
        assert -1 not in taken
        assert positions(2) == [-1, -1]
        worker.lane.position = taken[0]
        (wrapped,) = positions(1)
        assert wrapped == RING // 2 + 4 + len(message), "at the beginning again, behind what was left at the end"
        assert positions(1) == [-1]
        worker.lane.position = wrapped
        assert positions(1) == [wrapped + 4 + len(message)]


def test_batches_of_any_size_arrive_whole_however_late_they_are_taken() -> None:
    chance = random.Random(4)
    with lan(1, ("tap-vnet",), mtu=9000) as network:
        (one,) = network.ports
        worker = Receiver(one)
        waiting: list[tuple[Callable[[], bytes], int]] = []
        expected: list[bytes] = []
        by_lane = 0
        for _ in range(400):
            message = long_message(one, worker, chance.randbytes(chance.randint(17_000, 64_000)))
            one.link.send(message)
            one.turn()
            expected.append(batch(message))
            for read, position in worker.arrivals():
                by_lane += position >= 0
                waiting.append((read, position))
            if chance.random() < 0.1:
                for _ in range(chance.randint(1, len(waiting))):
                    read, position = waiting.pop(0)
                    assert read() == expected.pop(0)
                    if position >= 0:
                        worker.lane.position = position
        assert 200 < by_lane < 400


def test_a_receiver_that_lies_about_what_it_has_taken_spoils_only_its_own() -> None:
    chance = random.Random(7)
    with lan(2, ("tap-vnet",)) as network:
        one, two = network.ports
        worker = Receiver(one)
        for _ in range(200):
            one.link.send(long_message(one, worker, bytes(60_000)))
            one.turn()
            worker.batches()
            worker.lane.position = chance.choice((0, 1, 2**32 - 1, 2**31, chance.getrandbits(32)))
        message = long_message(one, two, os.urandom(60_000))
        one.link.send(message)
        network.run_until(lambda: len(two.delivered) == len(vnet.frames(message)))


def test_without_memory_to_share_all_goes_through_the_socket() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Receiver(one)
        message = long_message(one, worker, bytes(60_000))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            for _ in range(3):
                one.link.send(message)
                one.turn()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert worker.batches() == [(batch(message), -1)] * 3


def test_a_socket_without_room_for_the_ring_now_has_it_later() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.keep(ours)
        theirs.setblocking(False)
        while attempt(lambda: theirs.send(bytes(18))):
            pass
        one.engine.add_peer(2, theirs.detach(), MAC, [wide(IP)])
        peer = Port.__new__(Port)
        peer.mac, peer.ip = MAC, IP
        message = long_message(one, peer, bytes(60_000))
        one.link.send(message)
        one.turn()
        while (data := ours.recv(1 << 18)) == bytes(18):
            one.turn()
        assert data == batch(message)
        one.link.send(message)
        one.turn()
        data, fds, _, _ = socket.recv_fds(ours, 1 << 18, 1)
        assert [data, len(fds), len(ours.recv(1 << 18))] == [b"\0", 1, REFERENCE_LEN]
        os.close(*fds)


def test_a_worker_makes_no_more_than_sixteen_rings_at_a_time() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        peers = []
        for number in range(18):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            one.keep(ours)
            mac, ip = bytes((0x52, 0x54, 0, 0, 1, number)), f"192.168.127.{100 + number}"
            one.engine.add_peer(100 + number, theirs.detach(), mac, [wide(ip)])
            peer = Port.__new__(Port)
            peer.mac, peer.ip = mac, ip
            one.link.send(long_message(one, peer, bytes(60_000)))
            one.turn()
            peers.append(len(ours.recv(1 << 18)))
        assert peers == [1] * 16 + [4 + len(long_message(one, peer, bytes(60_000)))] * 2
        one.engine.remove_peer(100)
        one.link.send(long_message(one, peer, bytes(60_000)))
        one.turn()
        assert ours.recv(1 << 18) == b"\0"


# --- receiving


@pytest.mark.parametrize("readiness", ["epoll", "poll"])
@pytest.mark.parametrize("port_security", [True, False])
def test_long_and_short_frames_arrive_in_the_order_they_were_sent(readiness: str, port_security: bool) -> None:
    with lan(2, ("tap-vnet",), readiness=readiness, port_security=port_security) as network:
        one, two = network.ports
        expected = []
        for number in range(100):
            message = long_message(one, two, os.urandom(60_000))
            short = one.frame(two.mac, number.to_bytes(4, "big"))
            expected += [*vnet.frames(message), short]
            for sent in (message, vnet.PLAIN + short):
                while attempt(lambda sent=sent: one.link.send(sent)) is None:  # type: ignore[misc]
                    network.ports[0].turn()
                    network.ports[1].turn()
        network.run_until(lambda: len(two.delivered) >= len(expected))
        assert two.delivered == expected
        assert one.counter("switch.tx_bytes") == two.counter("switch.rx_bytes")
        assert one.counter("switch.tx_frames") == two.counter("switch.rx_frames") == 200


def test_room_is_given_back_when_the_link_has_taken_the_frame_and_not_before() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        worker.offer_lane()
        message = worker.message(one, os.urandom(60_000))
        one.reading = False
        sent = 0
        while not one.counter("link.blocked"):
            worker.lane.put(sent * 65536, batch(message))
            worker.refer(sent * 65536, len(batch(message)), sent + 1)
            sent += 1
            one.turn()
        assert worker.lane.position < sent
        one.reading = True
        network.run_until(lambda: len(one.delivered) == sent * len(vnet.frames(message)))
        network.run_until(lambda: worker.lane.position == sent)


def test_what_was_looked_at_leaves_as_it_was_looked_at() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        worker.offer_lane()
        message = worker.message(one, os.urandom(60_000))
        sent = worker.fill_link(message)
        worker.lane.put(0, bytes(4 + HEAD))
        one.reading = True
        network.run_until(lambda: len(one.delivered) == sent * len(vnet.frames(message)))
        assert one.delivered == vnet.frames(message) * sent


@pytest.mark.parametrize("gone", ["the peer", "its socket", "its ring"])
def test_what_waits_for_the_link_outlives(gone: str) -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        worker.offer_lane()
        message = worker.message(one, os.urandom(60_000))
        sent = worker.fill_link(message)
        if gone == "the peer":
            one.engine.remove_peer(99)
        elif gone == "its socket":
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            one.keep(ours)
            one.engine.add_peer(99, theirs.detach(), worker.mac, [])
        else:
            worker.offer_lane()
        one.reading = True
        network.run_until(lambda: len(one.delivered) == sent * len(vnet.frames(message)))
        assert one.delivered == vnet.frames(message) * sent


def test_what_waits_for_the_link_leaves_before_the_engine_ends() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        worker.offer_lane()
        message = worker.message(one, os.urandom(60_000))
        sent = worker.fill_link(message)
        one.read()
        one.engine.close()
        one.read()
        assert one.delivered == vnet.frames(message) * sent


def test_long_packets_for_a_link_that_cannot_take_them_are_cut_and_captured() -> None:
    with lan(2, ("tap-vnet", "stream32")) as network:
        one, two = network.ports
        capture = Capture(two)
        message = long_message(one, two, os.urandom(60_000))
        one.link.send(message)
        network.run_until(lambda: len(two.delivered) == len(vnet.frames(message)))
        assert [packet.frame for packet in capture.read()] == two.delivered


def test_long_packets_are_captured_whole() -> None:
    with lan(2, ("tap-vnet",)) as network:
        one, two = network.ports
        capture = Capture(two)
        message = long_message(one, two, os.urandom(60_000))
        one.link.send(message)
        network.run_until(lambda: len(two.delivered) == len(vnet.frames(message)))
        assert [packet.frame for packet in capture.read()] == [message[len(vnet.PLAIN) :]]


@pytest.mark.parametrize(
    ("size", "seals"),
    [(PAGE + RING, 0), (PAGE + RING - 1, fcntl.F_SEAL_SHRINK), (0, fcntl.F_SEAL_SHRINK)],
    ids=["that can be cut short", "that is too small", "of nothing"],
)
def test_memory_is_not_taken(size: int, seals: int) -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        worker.offer_lane(size, seals)
        worker.refer(0, 100)
        network.run_until(lambda: one.counter("switch.rx_refused") == 2)


def test_a_batch_takes_no_more_room_than_it_says_however_its_frames_are_cut() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        worker.offer_lane()
        plain = one.mac + worker.mac + b"\x88\xb5" + bytes(1006)
        full = (len(plain).to_bytes(4, "big") + plain) * 128
        message = (vnet.PLAIN + plain)[:261]
        cut = batch(*[message] * (len(full) // (4 + len(message))))
        worker.lane.put(0, full + cut)
        for offset, size in ((0, len(full)),) * 3 + ((len(full), len(cut)),):
            worker.refer(offset, size)
        network.run_until(lambda: len(one.delivered) == 3 * 128 + cut.count(message))


def test_a_descriptor_that_is_no_memory_is_closed() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        reading, writing = os.pipe()
        socket.send_fds(worker.sock, [b"\0" * 50], [reading, writing, reading])
        os.close(reading)
        os.close(writing)
        network.run_until(lambda: one.counter("switch.rx_refused") == 1)


BAD_REFERENCES = {
    "behind the end": (RING + 1, 100),
    "over the end": (RING - 50, 100),
    "far away": (2**32 - 1, 100),
    "too much": (0, (1 << 17) + 1),
    "more than there is": (0, 2**32 - 1),
    "half a frame": (0, 4 + FRAME // 2),
    "less than a length": (0, 3),
}


@pytest.mark.parametrize(("offset", "size"), BAD_REFERENCES.values(), ids=BAD_REFERENCES)
def test_a_reference_to_what_is_not_there_is_refused(offset: int, size: int) -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        worker.refer(offset, size)  # there is no ring at all yet
        worker.offer_lane()
        message = worker.message(one, os.urandom(60_000))
        worker.lane.put(0, batch(message))
        worker.refer(offset, size)
        worker.refer(0, len(batch(message)))
        network.run_until(lambda: len(one.delivered) == len(vnet.frames(message)))
        assert one.counter("switch.rx_refused") == 2


def test_a_frame_in_the_ring_that_is_forged_or_garbled_is_refused() -> None:
    chance = random.Random(11)
    with lan(2, ("tap-vnet",)) as network:
        one, two = network.ports
        worker = Sender(one)
        worker.offer_lane()
        message = worker.message(one, os.urandom(60_000))
        forged = message[:16] + two.mac + message[22:]
        worker.lane.put(0, batch(forged))
        worker.refer(0, len(batch(forged)))
        network.run_until(lambda: one.counter("switch.rx_refused") == 1)
        for _ in range(2000):
            garbled = bytearray(batch(message))
            for _ in range(chance.randint(1, 8)):
                garbled[chance.randrange(80)] = chance.getrandbits(8)
            worker.lane.put(0, bytes(garbled))
            worker.refer(0, len(garbled))
            one.engine.run(0)
            while attempt(lambda: one.link.recv(1 << 18)):
                pass


def test_a_datagram_cannot_say_that_its_frame_lies_elsewhere() -> None:
    with lan(1, ("tap-vnet",)) as network:
        (one,) = network.ports
        worker = Sender(one)
        message = worker.message(one, bytes(1000))
        entry = (60_000 | OFFLOADED | IN_LANE).to_bytes(4, "big") + message[:HEAD] + bytes(8)
        worker.sock.send(entry)
        worker.sock.send(entry[:4] + bytes(70_000))
        network.run_until(lambda: one.counter("switch.rx_refused") == 2)
        assert one.delivered == []


def test_two_engines_make_each_a_ring_for_its_own_direction() -> None:
    with lan(2, ("tap-vnet",)) as network:
        one, two = network.ports
        for sender, to in ((one, two), (two, one)) * 20:
            message = long_message(sender, to, os.urandom(60_000))
            to.delivered.clear()
            sender.link.send(message)
            network.run_until(lambda to=to, message=message: to.delivered == vnet.frames(message))  # type: ignore[misc]
        connect(one, two)  # a worker was replaced: new sockets, new rings
        message = long_message(one, two, os.urandom(60_000))
        two.delivered.clear()
        one.link.send(message)
        network.run_until(lambda: two.delivered == vnet.frames(message))
