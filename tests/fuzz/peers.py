"""A hostile worker: what a broken one may send to another over their socket and their shared memory.

Every episode makes two engines on one network, and a worker beside them that sends batches, references and rings that
were right before something was done to them, changes its ring while it is read, and lies about the other one. It is
replaced, captures come and go, and the guest at times reads nothing. Whatever reaches the guest is from that worker's
own VM, as far as port security says so, or from the honest one.

By hand, best under AddressSanitizer (`make asan` shows how): ``python -m tests.fuzz.peers SECONDS [SEED]``.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

from tests.fuzz.frames import fuzz, mutate
from tests.worker import vnet
from tests.worker.framebed import BROADCAST, GATEWAY_MAC, LINKS, attempt
from tests.worker.switch.lan import Lan, Port
from tests.worker.switch.lanes import PAGE, RING, Lane, Sender, long_message
from tests.worker.switch.test_offloads import MSS, OFFLOADED, TCP_CHECKSUM
from tests.worker.test_engine_capture import Capture

STEPS = 300
SIZES = (14, 60, 246, 251, 252, 255, 256, 257, 300, 1514, 1515)
EDGES = (0, 1, 3, 4, 17, RING - 1, RING, RING + 1, 1 << 31, (1 << 32) - 1)


class Broken(Sender):
    """Has a ring, and is sent another's."""

    def __init__(self, port: Port) -> None:
        super().__init__(port)
        self.theirs: Lane | None = None
        self.offer_lane()

    def lie(self, rng: random.Random) -> None:
        """About what it has taken of what it was sent."""
        while got := attempt(lambda: socket.recv_fds(self.sock, 1 << 18, 1)):
            for fd in got[1]:
                self.theirs = Lane(fd, self.port)
        if self.theirs is not None:
            self.theirs.position = rng.choice((*EDGES, rng.getrandbits(32)))


class Episode:
    """A network of two honest workers and all that a third does to one of them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.port_security = rng.random() < 0.7
        links = rng.choice(("tap-vnet", *LINKS)), "tap-vnet"
        self.network = Lan(
            2, links, readiness=rng.choice(("epoll", "poll")), port_security=self.port_security, mtu=1500
        )
        self.port, self.honest = self.network.ports
        self.worker = Broken(self.port)
        self.captures: list[Capture] = []

    def close(self) -> None:
        self.network.close()

    def message(self) -> bytes:
        """A frame behind its length, as it may lie in a batch."""
        rng = self.rng
        target = rng.choice((self.port.mac, BROADCAST))
        if rng.random() < 0.2:
            packet = long_message(self.port, self.port, rng.randbytes(rng.choice((1, 300, 9000, 60_000))))
        else:
            packet = vnet.PLAIN + target + self.worker.mac + b"\x88\xb5" + bytes(rng.choice(SIZES) - 14)
        frame = bytearray(packet)
        frame[16:22] = self.worker.mac
        if rng.random() < 0.3:
            frame[10:] = mutate(rng, bytes(frame[10:400])) + frame[400:]
        if rng.random() < 0.3:
            frame[: len(vnet.PLAIN)] = vnet.HEADER.pack(
                rng.choice((0, 1, 2, 0xFF)), rng.choice((0, 1, 3, 0x81)), rng.getrandbits(16),
                rng.choice((0, 1, MSS, 65535)), rng.choice((0, 34, 65535)), rng.choice((0, TCP_CHECKSUM, 65535)),
            )  # fmt: skip
        offloaded = rng.random() < 0.7
        data = bytes(frame) if offloaded else bytes(frame[len(vnet.PLAIN) :])
        length = len(data) | OFFLOADED if offloaded else len(data)
        if rng.random() < 0.05:
            length = rng.choice((length ^ 1 << rng.randrange(32), rng.getrandbits(32), length + 1, 0))
        return length.to_bytes(4, "big") + data

    def batch(self) -> bytes:
        """Up to all that one may hold, at times a little more or less."""
        rng = self.rng
        if rng.random() < 0.3:
            message = self.message()
            data = message * max(1, rng.choice((1, 10, 131_072)) // len(message))
        else:
            data = b"".join(self.message() for _ in range(rng.randrange(1, 6)))
        return data[: rng.choice((131_072, 131_072, 131_073, rng.randrange(1, 131_072)))]

    def by_socket(self) -> None:
        attempt(partial(self.worker.sock.send, self.batch()))

    def by_lane(self) -> None:
        rng, data = self.rng, self.batch()
        offset = rng.choice((0, rng.randrange(RING), RING - len(data)))
        self.worker.lane.put(offset, data[: RING - offset])
        size = len(data)
        if rng.random() < 0.1:
            offset, size = rng.choice((offset, *EDGES)), rng.choice((size, *EDGES))
        attempt(partial(self.worker.refer, offset, size, rng.choice((*EDGES, rng.getrandbits(32)))))

    def change_the_ring(self) -> None:
        for _ in range(20):
            self.worker.lane.put(self.rng.randrange(RING - 8), self.rng.randbytes(8))

    def offer(self) -> None:
        rng = self.rng
        if rng.random() < 0.8:
            attempt(self.worker.offer_lane)
        elif rng.random() < 0.5:
            seals = rng.choice((0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK))
            attempt(partial(self.worker.offer_lane, rng.choice((0, PAGE, PAGE + RING - 1, PAGE + RING + 1)), seals))
        else:
            ends = os.pipe()
            attempt(partial(socket.send_fds, self.worker.sock, [bytes(rng.choice((1, 12, 100)))], ends))
            for end in ends:
                os.close(end)

    def come_and_go(self) -> None:
        if self.rng.random() < 0.3:
            self.port.engine.remove_peer(99)
        self.worker = Broken(self.port)

    def capture(self) -> None:
        if self.captures and self.rng.random() < 0.5:
            self.captures.pop().sock.close()
        elif len(self.captures) < 3:
            self.captures.append(Capture(self.port, snaplen=self.rng.choice((0, 60))))

    def honestly(self) -> None:
        """Long packets of the guest and to it."""
        attempt(partial(self.honest.link.send, long_message(self.honest, self.port, bytes(60_000))))
        if self.port.framing == "tap-vnet":
            for to in (self.worker, self.honest):
                attempt(partial(self.port.link.send, long_message(self.port, to, bytes(60_000))))
        self.worker.lie(self.rng)

    def listen(self, port: Port) -> None:
        """What came out; nobody but those two speaks."""
        if port.framing == "tap-vnet":
            while message := attempt(lambda: port.link.recv(1 << 18)):
                port.delivered.append(message[len(vnet.PLAIN) :])
        else:
            port.read()
        others = {self.worker.mac, self.port.mac, self.honest.mac} - {port.mac}
        for frame in port.delivered:
            assert frame[6:12] != GATEWAY_MAC
            assert not self.port_security or frame[6:12] in others
        port.delivered.clear()

    def play(self) -> None:
        rng = self.rng
        reading = True
        steps: tuple[Callable[[], None], ...] = (
            *(self.by_socket, self.by_lane) * 4, self.offer, self.honestly, self.honestly, self.change_the_ring,
            self.come_and_go, self.capture,
        )  # fmt: skip
        for port in self.network.ports:
            port.reading = False
        for _ in range(STEPS):
            rng.choice(steps)()
            if rng.random() < 0.4:
                reading = rng.random() < 0.8
            for port in self.network.ports:
                port.turn()
                if reading or port is self.honest:
                    self.listen(port)
            for capture in self.captures:
                attempt(lambda capture=capture: capture.sock.recv(1 << 20))  # type: ignore[misc]


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() & 0xFFFFFF
    print(f"{fuzz(float(sys.argv[1]), seed, Episode)} episodes")
