"""The guest's end of a TCP connection, as frames: just enough TCP to say exactly what a test wants to say."""

from __future__ import annotations

from typing import Any

import dpkt
from dpkt.tcp import TH_ACK, TH_FIN, TH_PUSH, TH_RST, TH_SYN

from tests.worker.framebed import GUEST_IP, REMOTE_IP, TCP, Bed, ipv4, v4

MSS = 1460
WSCALE = 2
ISN = 1000


class GuestTcp:
    """A connection between a port of the guest and a destination as the guest knows it."""

    def __init__(
        self, bed: Bed, dst: str = REMOTE_IP, dport: int = 80, sport: int = 40000, window: int = 65535
    ) -> None:
        self.bed, self.dst, self.dport, self.sport = bed, dst, dport, sport
        self.window = window
        """What the guest announces, in units of 2**WSCALE bytes."""
        self.next = ISN
        """The next sequence number the guest sends."""
        self.expected = 0
        """The next sequence number the guest has not received yet."""
        self.acked = ISN
        self.allowed = ISN
        """The engine's window ends here."""
        self._scale = 0

    def segment(
        self, flags: int, payload: bytes = b"", *, seq: int | None = None, opts: bytes = b"", **ip: Any
    ) -> bytes:
        """A frame of this connection."""
        segment = dpkt.tcp.TCP(
            sport=self.sport, dport=self.dport, seq=(self.next if seq is None else seq) & 0xFFFFFFFF,
            ack=self.expected if flags & TH_ACK else 0, flags=flags, win=self.window, opts=opts, data=payload,
        )  # fmt: skip
        segment.off = 5 + len(opts) // 4
        return ipv4(segment, self.dst, proto=TCP, **ip)

    def say(self, flags: int, payload: bytes = b"", opts: bytes = b"") -> None:
        """Send a segment next in order."""
        self.bed.send(self.segment(flags, payload, opts=opts))
        self.next += len(payload) + bool(flags & (TH_SYN | TH_FIN))

    def syn(self) -> None:
        self.bed.send(self.segment(TH_SYN, opts=bytes([2, 4, *MSS.to_bytes(2, "big"), 3, 3, WSCALE, 0])))
        self.next = ISN + 1

    def hear(self, flags: int = 0) -> Any:
        """The next segment from the engine; `flags` must be among its own."""
        packet = self.bed.expect(self.is_ours)
        segment = packet.tcp
        assert segment.flags & flags == flags, f"expected flags {flags:#x}, got {segment.flags:#x}"
        if segment.flags & TH_ACK and not segment.flags & TH_RST:
            self.acked = segment.ack
            scale = 0 if segment.flags & TH_SYN else self._scale
            self.allowed = max(self.allowed, segment.ack + (segment.win << scale))
        return segment

    def is_ours(self, ip: Any) -> bool:
        return (
            isinstance(getattr(ip, "tcp", None), dpkt.tcp.TCP)
            and ip.dst == v4(GUEST_IP)
            and ip.src == v4(self.dst)
            and (ip.tcp.sport, ip.tcp.dport) == (self.dport, self.sport)
        )

    def hears_nothing(self) -> bool:
        """Whether the engine has said nothing about this connection by the time it has handled everything."""
        self.bed.settle()
        return not any(self.is_ours(frame.data) for frame in self.bed.inbox)

    def open(self) -> GuestTcp:
        """The guest's side of the handshake."""
        self.syn()
        self.take_syn(self.hear(TH_SYN | TH_ACK))
        return self

    def take_syn(self, segment: Any) -> None:
        """The engine's SYN or SYN-ACK; what it deserves as an answer is sent."""
        kinds = dict(dpkt.tcp.parse_opts(segment.opts))
        self._scale = kinds.get(dpkt.tcp.TCP_OPT_WSCALE, b"\0")[0]
        self.expected = segment.seq + 1
        if segment.flags & TH_ACK:
            self.say(TH_ACK)

    def answer(self) -> GuestTcp:
        """The guest accepts a connection that the host opened by a forward."""
        self.take_syn(self.hear(TH_SYN))
        self.bed.send(self.segment(TH_SYN | TH_ACK, opts=bytes([2, 4, *MSS.to_bytes(2, "big"), 3, 3, WSCALE, 0])))
        self.next += 1
        self.hear(TH_ACK)
        return self

    def write(self, data: bytes) -> None:
        """Send data as the engine's window lets it, until all is acknowledged."""
        sent = 0
        start = self.next
        while self.acked < start + len(data):
            room = self.allowed - self.next
            piece = data[sent : sent + min(MSS, max(room, 0))]
            if piece:
                self.say(TH_ACK | TH_PUSH, piece)
                sent += len(piece)
            else:
                self.hear(TH_ACK)

    def read(self, size: int) -> bytes:
        """`size` bytes of the stream, acknowledged segment by segment."""
        data = bytearray()
        while len(data) < size:
            segment = self.hear(TH_ACK)
            if segment.seq == self.expected and segment.data:
                data += segment.data
                self.expected += len(segment.data)
                if segment.flags & TH_FIN:
                    self.expected += 1
                self.say(TH_ACK)
        assert len(data) == size
        return bytes(data)

    def hear_fin(self) -> None:
        """The engine's FIN, with no data before it, acknowledged."""
        while not (segment := self.hear()).flags & TH_FIN:
            assert not segment.data
        assert segment.seq + len(segment.data) == self.expected
        self.expected += 1
        self.say(TH_ACK)

    def hear_reset(self) -> Any:
        """The engine's RST, whatever came before it."""
        while not (segment := self.hear()).flags & TH_RST:
            pass
        return segment
