"""A hostile guest: valid frames, mutated, against a real engine with real sockets behind it.

Every episode makes an engine, opens a few connections, and then sends frames that were right before something was done
to them: bits flipped, fields set to their limits, cut, lengthened, out of order. Most get their checksums put right
again, so that they are not turned away at the door. The host's sockets talk, close and reset meanwhile. The bed checks
every frame that comes out, and that nothing is left open.

By hand, best under AddressSanitizer (`make asan` shows how): ``python -m tests.fuzz.frames SECONDS [SEED]``.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import dpkt
from dpkt.tcp import TH_ACK, TH_FIN, TH_PUSH, TH_RST, TH_SYN

from tests.worker.framebed import (
    GATEWAY_IP,
    LINKS,
    REMOTE_IP,
    TCP,
    UDP,
    Bed,
    arp,
    attempt,
    fragment,
    fragments,
    ipv4,
    udp,
)
from tests.worker.guest_tcp import GuestTcp
from worker.upcalls import Action, Upcall

FRAMES_PER_EPISODE = 400
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
FLAGS = (TH_ACK, TH_ACK | TH_PUSH, TH_ACK | TH_FIN, TH_RST, TH_SYN, TH_SYN | TH_ACK, TH_RST | TH_ACK, 0, 0x3F)
OPTIONS = ("", "0101080a0000000100000000", "0101050a0000000000000001", "020405b40402030307010101", "05120000", "0300")


def repair(frame: bytearray) -> None:
    """Make the checksums right again, as far as the lengths allow."""
    header = (frame[14] & 15) * 4 if len(frame) >= 34 else 0
    if header < 20 or len(frame) < 14 + header:
        return
    frame[24:26] = b"\0\0"
    frame[24:26] = dpkt.in_cksum(bytes(frame[14 : 14 + header])).to_bytes(2, "big")
    total = min(int.from_bytes(frame[16:18], "big"), len(frame) - 14)
    start, end = 14 + header, 14 + total
    at = start + {TCP: 16, UDP: 6, 1: 2}.get(frame[23], 1 << 20)
    if at + 2 > end:
        return
    pseudo = b"" if frame[23] == 1 else bytes(frame[26:34]) + bytes([0, frame[23]]) + (end - start).to_bytes(2, "big")
    frame[at : at + 2] = b"\0\0"
    frame[at : at + 2] = dpkt.in_cksum(pseudo + bytes(frame[start:end])).to_bytes(2, "big")


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """The frame with something done to it."""
    data = bytearray(frame)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(14 if rng.random() < 0.9 and len(data) > 14 else 0, max(len(data), 1))
        what = rng.random()
        if not data or at >= len(data):
            break
        if what < 0.35:
            data[at] ^= 1 << rng.randrange(8)
        elif what < 0.6:
            data[at] = rng.choice(INTERESTING)
        elif what < 0.75:
            data[at : at + 2] = rng.randbytes(2)
        elif what < 0.85:
            del data[at:]
        elif what < 0.95:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 40, 1500)))
        else:
            del data[at : at + rng.randrange(1, 9)]
    if rng.random() < 0.8:
        repair(data)
    return bytes(data)


class Playable(Protocol):
    """What `fuzz` plays."""

    def play(self) -> None:
        """Do it all; fails where something is wrong."""

    def close(self) -> None:
        """Hold the engines to leaving nothing open."""


class Episode:
    """One engine and all that is done to it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        link, readiness = rng.choice(tuple(LINKS)), rng.choice(("epoll", "poll"))
        self.bed = Bed(link, readiness, rng.choice((576, 1500, 9000)))
        self.server, self.echo = self.bed.tcp_server(), self.bed.udp_server()
        self.bed.allow(TCP, self.server.getsockname()[1])
        self.bed.allow(UDP, self.echo.getsockname()[1])
        self.bed.allow(UDP, self.echo.getsockname()[1], dport=53)
        self.bed.judge(TCP, Action.LOCAL, dport=81)
        for n, action in enumerate((Action.REFUSE, Action.UNREACHABLE, Action.DROP)):
            self.bed.judge(TCP, action, dport=90 + n)
            self.bed.judge(UDP, action, dport=90 + n)
        self.forward = self.bed.forward(TCP, 80)
        self.udp_forward = self.bed.forward(UDP, 7, 2)
        self.client = self.bed.udp_server()
        self.hosts: list[socket.socket] = []
        self.guests = [GuestTcp(self.bed, sport=1024 + n).open() for n in range(2)]
        self.guests.append(GuestTcp(self.bed, dport=81, sport=9).open())

    def segment(self) -> bytes:
        """A segment of a live connection, near what it should be."""
        rng, guest = self.rng, self.rng.choice(self.guests)
        payload = rng.randbytes(rng.choice((0, 0, 1, 10, 500, 1460)))
        seq = guest.next + rng.choice((0, 0, 0, 0, -1, 1, -len(payload), 1000, 70_000, -(1 << 31), rng.getrandbits(32)))
        kept = guest.expected
        guest.expected = (kept + rng.choice((0, 0, 0, 1, -1, 2000, 100_000, rng.getrandbits(32)))) & 0xFFFFFFFF
        guest.window = rng.choice((0, 1, 500, 65535))
        flags = rng.choice(FLAGS[:2] if rng.random() < 0.8 else FLAGS)
        frame = guest.segment(flags, payload, seq=seq, opts=bytes.fromhex(rng.choice(OPTIONS)))
        guest.expected = kept
        if seq == guest.next and flags & TH_ACK and len(payload) and rng.random() < 0.7:
            guest.next += len(payload)
        return frame

    def datagram(self) -> bytes:
        rng = self.rng
        return udp(
            rng.randbytes(rng.choice((0, 1, 100, 1400))), rng.choice((80, 80, 53, 90, 91, 92, 99)),
            sport=rng.choice((5000, 5001, rng.randrange(1, 65536))),
        )  # fmt: skip

    def piece(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.5:
            return rng.choice(fragments(udp(bytes(200), 80), 64, 128, ident=rng.randrange(4)))
        return fragment(
            rng.randbytes(rng.choice((1, 8, 16, 1024))), rng.choice((0, 8, 64, 1024, 65_504)), rng.random() < 0.7,
            proto=rng.choice((UDP, TCP)), ident=rng.randrange(4),
        )  # fmt: skip

    def other(self) -> bytes:
        rng = self.rng
        return rng.choice(
            (
                arp(rng.getrandbits(32)),
                ipv4(b"\x08\x00\xf7\xff" + bytes(4), rng.choice((GATEWAY_IP, REMOTE_IP)), proto=1),
                ipv4(rng.randbytes(20), proto=rng.randrange(256)),
                GuestTcp(self.bed, dport=rng.choice((80, 81, 90, 91, 92, 99)), sport=rng.randrange(1, 65536)).segment(
                    TH_SYN
                ),
            )
        )

    def stir_host(self) -> None:
        """Something happens on the host's side."""
        rng, bed = self.rng, self.bed
        accepted = attempt(lambda: self.server.accept()[0])
        if accepted is not None:
            self.hosts.append(bed.keep(accepted))
        with contextlib.suppress(BlockingIOError, ConnectionError, OSError):
            what = rng.randrange(8)
            if what == 0:
                bed.keep(bed.connect(self.forward))
            elif what == 1:
                self.client.sendto(rng.randbytes(rng.choice((0, 100, 3000))), ("127.0.0.1", self.udp_forward))
            elif what == 2:
                data, source = self.echo.recvfrom(65536)
                self.echo.sendto(data * rng.choice((0, 1, 3)), source)
            elif self.hosts:
                host = rng.choice(self.hosts)
                if what == 3:
                    host.shutdown(socket.SHUT_WR)
                elif what == 4 and rng.random() < 0.2:
                    host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    host.close()
                    self.hosts.remove(host)
                elif what == 5:
                    host.recv(65536)
                else:
                    host.send(rng.randbytes(rng.choice((1, 1000, 60_000))))

    def answer_upcalls(self) -> None:
        for upcall in self.bed.upcalls:
            if upcall[0] == Upcall.VERDICT and self.rng.random() < 0.5:
                self.bed.engine.inject(upcall[4])
        self.bed.upcalls = [upcall for upcall in self.bed.upcalls if upcall[0] == Upcall.STREAM]

    def play(self) -> None:
        rng, bed = self.rng, self.bed
        kinds: tuple[Callable[[], bytes], ...] = (self.segment, self.segment, self.datagram, self.piece, self.other)
        for _ in range(FRAMES_PER_EPISODE):
            frame = mutate(rng, rng.choice(kinds)())
            if rng.random() < 0.2:
                bed.engine.inject(frame)
            elif bed.framing == "tap-vnet" and rng.random() < 0.5:
                header = bytes((rng.choice((0, 1, 2, 0xFF)), rng.choice((0, 1, 1, 3, 0x81)))) + rng.randbytes(8)
                attempt(partial(bed.link.send, header + frame))
            elif len(frame) <= 65_535:
                bed.send(frame)
            if rng.random() < 0.3:
                bed.turn()
                self.answer_upcalls()
                self.stir_host()
                bed.reading = rng.random() < 0.9
                bed.inbox.clear()
        if rng.random() < 0.5:
            with contextlib.suppress(ConnectionError):
                bed.link.send(rng.randbytes(rng.choice((1, 100, 100_000))))
            bed.reading = False
            for _ in range(4):
                bed.turn()
        assert bed.counter("tcp.flows") < FRAMES_PER_EPISODE * 2

    def close(self) -> None:
        self.bed.close()


def fuzz(seconds: float, seed: int, make: Callable[[random.Random], Playable] = Episode) -> int:
    """Play episodes for that long; how many. The seed of a failing one is on standard error."""
    end = time.monotonic() + seconds
    played = 0
    while played == 0 or time.monotonic() < end:
        print(f"episode with seed {seed + played}", file=sys.stderr, flush=True)
        episode = make(random.Random(seed + played))
        try:
            episode.play()
        finally:
            episode.close()
        played += 1
    return played


if __name__ == "__main__":
    print(f"{fuzz(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() & 0xFFFFFF)} episodes")
