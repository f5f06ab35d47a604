"""Echo requests through the host's unprivileged ping sockets (icmp(7): SOCK_DGRAM, IPPROTO_ICMP).

One socket per (guest address, echo id, destination): the kernel gives each an id of its own and hands it only its own
replies. Errors that the world sends back (RFC 792: unreachable, time exceeded) come by the socket's error queue and go
on to the guest from the address that sent them, so traceroute in a guest shows the real path. The host forbids ping
sockets to groups outside ``net.ipv4.ping_group_range``: that is said once and counted, and nothing is answered.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.addr import ipv4_text
from worker.services import icmp
from worker.services.frames import Packet
from worker.services.icmp import Echo, IcmpResponder

MAX_SOCKETS = 64
"""Open ping sockets a VM; the one unused longest makes room."""
IDLE_TIMEOUT = 30.0
MAX_WAITING = 32
"""Requests a socket remembers, so that an error can quote the one it is about."""
MAX_REPLIES_PER_TURN = 32
_IP_RECVERR = getattr(socket, "IP_RECVERR", 11)
_EXTENDED_ERR = struct.Struct("=IBBBxII")
"""struct sock_extended_err of linux/errqueue.h: errno, origin, type, code, info, data; then the offender's address."""
_ORIGIN_ICMP = 2
_UNREACHABLE_CODES = {
    errno.ENETUNREACH: icmp.NET_UNREACHABLE,
    errno.EHOSTUNREACH: icmp.HOST_UNREACHABLE,
    errno.EACCES: icmp.PROHIBITED,
    errno.EPERM: icmp.PROHIBITED,
}

log = logging.getLogger(__name__)

Key = tuple[bytes, int, bytes]


@dataclass(slots=True)
class _Pinger:
    sock: socket.socket
    used_at: float
    ttl: int = 0
    waiting: deque[tuple[int, Packet]] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    """(sequence number, request), newest last."""

    def request(self, seq: int) -> Packet | None:
        return next((packet for waiting, packet in reversed(self.waiting) if waiting == seq), None)


class PingRelay:
    """The ping sockets of one VM."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, responder: IcmpResponder, send_frame: Callable[[bytes], bool]
    ) -> None:
        self._loop = loop
        self._responder = responder
        self._send_frame = send_frame
        self._pingers: OrderedDict[Key, _Pinger] = OrderedDict()
        self._sweep: asyncio.TimerHandle | None = None
        self._warned = False
        self.counters = dict.fromkeys(
            ("icmp.ping_sent", "icmp.ping_forbidden", "icmp.ping_failed", "icmp.ping_evicted", "icmp.ping_sockets"), 0
        )

    def send(self, echo: Echo, host_addr: bytes) -> None:
        """Send a guest's request on to `host_addr` (4 bytes)."""
        packet = echo.packet
        if packet.ttl <= 1:
            self._emit(self._responder.error(packet, icmp.TIME_EXCEEDED, 0))
            return
        key = (packet.src, echo.ident, packet.dst)
        try:
            pinger = self._pingers.get(key) or self._open(key, host_addr)
            if pinger.ttl != packet.ttl - 1:  # the gateway is a hop
                pinger.ttl = packet.ttl - 1
                pinger.sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, pinger.ttl)
            self._pingers.move_to_end(key)
            pinger.used_at = self._loop.time()
            pinger.waiting.append((echo.seq, packet))
            pinger.sock.send(_request(echo))
        except OSError as error:
            self._on_send_error(packet, host_addr, error)
        else:
            self.counters["icmp.ping_sent"] += 1

    def close(self) -> None:
        """Close every socket."""
        if self._sweep is not None:
            self._sweep.cancel()
        for key in list(self._pingers):
            self._drop(key)

    def _open(self, key: Key, host_addr: bytes) -> _Pinger:
        while len(self._pingers) >= MAX_SOCKETS:
            self.counters["icmp.ping_evicted"] += 1
            self._drop(next(iter(self._pingers)))
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
        try:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            sock.connect((ipv4_text(host_addr), 0))
        except OSError:
            sock.close()
            raise
        pinger = self._pingers[key] = _Pinger(sock, self._loop.time())
        self.counters["icmp.ping_sockets"] = len(self._pingers)
        self._loop.add_reader(sock.fileno(), self._on_readable, key, pinger)
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_TIMEOUT, self._expire)
        return pinger

    def _drop(self, key: Key) -> None:
        pinger = self._pingers.pop(key)
        self._loop.remove_reader(pinger.sock.fileno())
        pinger.sock.close()
        self.counters["icmp.ping_sockets"] = len(self._pingers)

    def _expire(self) -> None:
        horizon = self._loop.time() - IDLE_TIMEOUT
        for key in [key for key, pinger in self._pingers.items() if pinger.used_at <= horizon]:
            self._drop(key)
        self._sweep = self._loop.call_later(IDLE_TIMEOUT, self._expire) if self._pingers else None

    def _on_readable(self, key: Key, pinger: _Pinger) -> None:
        for _ in range(MAX_REPLIES_PER_TURN):
            try:
                message = pinger.sock.recv(65535)
            except BlockingIOError:
                return
            except OSError:  # an error is queued, and reading it clears the socket's error
                if not self._pull_errors(key, pinger):
                    self._drop(key)
                    return
                continue
            request = pinger.request(int.from_bytes(message[6:8], "big"))
            if request is None or len(message) < icmp.ECHO_HEADER_LEN or message[0] != icmp.ECHO_REPLY:
                continue
            _, ident, _ = key
            seq = int.from_bytes(message[6:8], "big")
            self._emit(self._responder.echo_reply(request, ident, seq, message[8:]))

    def _pull_errors(self, key: Key, pinger: _Pinger) -> bool:
        """Pass queued errors on; False when the queue was empty, so that a broken socket cannot keep the loop busy."""
        found = False
        for _ in range(MAX_REPLIES_PER_TURN):
            try:
                message, ancillary, _, _ = pinger.sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return found
            found = True
            request = pinger.request(int.from_bytes(message[6:8], "big"))
            for level, _, data in ancillary:
                if level != socket.IPPROTO_IP or request is None or len(data) < _EXTENDED_ERR.size:
                    continue
                _, origin, kind, code, info, _ = _EXTENDED_ERR.unpack_from(data)
                if origin == _ORIGIN_ICMP:
                    offender = data[_EXTENDED_ERR.size + 4 : _EXTENDED_ERR.size + 8]
                    src = key[2] if offender.startswith(b"\x7f") else offender  # the host's loopback is the alias
                    self._emit(self._responder.error(request, kind, code, info, src))
        return found

    def _on_send_error(self, packet: Packet, host_addr: bytes, error: OSError) -> None:
        if not self._may_ping():
            self.counters["icmp.ping_forbidden"] += 1
            if not self._warned:
                self._warned = True
                log.warning("net.ipv4.ping_group_range forbids ping sockets: the guest's pings stay unanswered")
            return
        self.counters["icmp.ping_failed"] += 1
        log.debug("ping to %s: %s", ipv4_text(host_addr), error)
        code = _UNREACHABLE_CODES.get(error.errno or 0)
        if code is not None:
            self._emit(self._responder.error(packet, icmp.UNREACHABLE, code))

    def _may_ping(self) -> bool:
        """Whether the last failure was about one destination: EACCES means either that or a forbidden socket."""
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
        except PermissionError:
            return False
        except OSError:
            return True
        return True

    def _emit(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._send_frame(frame)


def _request(echo: Echo) -> bytes:
    """The kernel fills in the id and the checksum."""
    return struct.pack("!BBHHH", icmp.ECHO_REQUEST, 0, 0, 0, echo.seq) + echo.data
