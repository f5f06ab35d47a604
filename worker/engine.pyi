"""The datapath of one VM: link, TCP, UDP, and the readiness of every descriptor of the process."""

from collections.abc import Sequence
from typing import Any, final

__all__ = ["STATES", "Engine"]

STATES: tuple[str, ...]
"""The names of TCP's states, by number (RFC 9293 section 3.3.2)."""

@final
class Engine:
    """Carries a guest's traffic between its link and host sockets; hands what needs thought to Python.

    Addresses are 16 bytes wherever they appear, IPv4 as ``::ffff:a.b.c.d``.
    """

    def __init__(
        self,
        link_fd: int,
        framing: str,
        mtu: int,
        gateway_mac: bytes,
        gateway_ip: bytes,
        subnet: bytes,
        prefix_len: int,
        *,
        link_out_fd: int = -1,
        resync: bool = False,
        guest_mac: bytes = b"",
        readiness: str = "auto",
        udp_idle: float = 180.0,
    ) -> None:
        """Take `link_fd` (made non-blocking, closed by `close`); of a pair of pipes it is the one to read, and
        `link_out_fd` the one to write.

        `framing` is one of `proto.messages.Framing`; `prefix_len` counts in 128 bits (an IPv4 /24 is 120); `readiness`
        is ``epoll``, ``poll`` or ``auto``; `udp_idle` is how long a UDP mapping stays after its last datagram. Raises
        ValueError on an unknown framing or an MTU outside 576..65535.
        """
    # --- the selector's side
    @property
    def upcall_fd(self) -> int:
        """A descriptor to give to `register`: `run` reports it readable while upcalls wait."""
    def register(self, fd: int, events: int) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def run(self, timeout: float) -> list[tuple[int, int]]:
        """Carry traffic until a registered descriptor is ready, upcalls wait or `timeout` seconds have passed.

        A negative timeout waits without end. Returns (fd, events), events as `selectors.EVENT_READ|EVENT_WRITE`.
        """
    # --- the control side
    def take_upcalls(self) -> list[tuple[Any, ...]]:
        """All waiting upcalls, oldest first; their shapes are in `worker.upcalls`."""
    def set_verdict(
        self, proto: int, dst: bytes, dport: int, action: int, host_addr: bytes = b"", host_port: int = 0
    ) -> None:
        """Remember what happens to traffic for (proto 6 or 17, dst, dport), until `clear_verdicts` or eviction."""
    def clear_verdicts(self) -> None: ...
    def map_address(self, guest_side: bytes, host_side: bytes) -> None:
        """The reverse of NAT: datagrams from `host_side` reach the guest from `guest_side`."""
    def inject(self, frame: bytes) -> None:
        """Handle a frame as if the guest had sent it now."""
    def receive(self, data: bytes) -> None:
        """Take what was read from the link before the engine had it, at most 256 KiB; once, before the first `run`."""
    def send_frame(self, frame: bytes) -> bool:
        """Queue an Ethernet frame to the guest; False (and counted) when the queue is full."""
    def send_udp(
        self, src: bytes, sport: int, dst: bytes, dport: int, payload: bytes, dst_mac: bytes = b""
    ) -> bool:
        """Queue a datagram to the guest, fragmented where it is larger than the MTU; `dst_mac` default: the guest's."""
    def add_listener(
        self, forward_id: int, fd: int, proto: int, guest_ip: bytes, guest_port: int, *, keep_source: bool = True
    ) -> None:
        """Serve a forwarded port: `fd` is a listening TCP or unix stream socket or a bound UDP socket, of IPv4 or IPv6,
        owned by the engine from now on.

        With `keep_source` the guest sees a client's own address where it can answer it, else the gateway's.
        """
    def remove_listener(self, forward_id: int) -> None:
        """Close the forward's socket; live connections go on. Raises KeyError on an unknown id."""
    def call_guest(self, fd: int, guest_ip: bytes, guest_port: int, first_bytes: bytes = b"") -> None:
        """Open a connection to a port of the guest and join it to `fd`, a connected stream socket, owned by the engine
        from now on; the guest sees the gateway. A refusal closes `fd`. `first_bytes` were read of it already."""
    def join_switch(self, port_security: bool) -> None:
        """Carry frames to and from peers; with port security only those whose sender is who it says.

        Raises ValueError the second time.
        """
    def set_guest(self, mac: bytes, addresses: Sequence[bytes]) -> None:
        """What the guest may call itself to peers; an empty MAC: nothing yet. Raises ValueError."""
    def add_peer(self, number: int, fd: int, mac: bytes, addresses: Sequence[bytes]) -> None:
        """Another VM: `fd` is a datagram socket connected with its worker, owned by the engine from now on.

        A number that is there already gets the new identity, and the new socket unless `fd` is -1. Raises ValueError,
        OSError.
        """
    def remove_peer(self, number: int) -> None:
        """A VM is gone. Raises KeyError on an unknown number."""
    def add_capture(self, fd: int, interface: int, snaplen: int = 0, buffer_fd: int = -1) -> None:
        """Write every frame of the link, or its first `snaplen` bytes, to `fd` as a pcapng block, until it is closed at
        its other end or breaks; the engine owns it from now on, and makes it non-blocking.

        `interface` is the frames' interface in the section, whose header `fd`'s reader has. `buffer_fd` is a file that
        is as `proto.captures` says, owned by the engine from now on: an engine that had it before left there what its
        reader lacks. Raises OSError, with EBADMSG where that is not known.
        """
    def counters(self) -> dict[str, int]:
        """Every counter and gauge, by dotted name."""
    def flows(self, limit: int = 1000) -> Sequence[tuple[str, str, int, str, int, str, int, int]]:
        """Open flows: (proto, guest address, port, peer address, port, state, bytes from guest, bytes to guest)."""
    @property
    def guest_mac(self) -> bytes:
        """The guest's MAC, empty until a frame came."""
    def close(self) -> None:
        """Reset every flow, send what the link still takes, close every descriptor of the engine."""
