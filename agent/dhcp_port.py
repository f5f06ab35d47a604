"""Where DHCP messages go out of and come into a device: a packet socket, since the device has no address yet.

packet(7). The headers of IPv4 (RFC 791) and UDP (RFC 768) are written here: the kernel's own UDP would put another
device's address into our packets, where there is one. A filter (Documentation/networking/filter.rst) keeps all other
traffic of the device away, so that this socket costs the data path next to nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

from agent.dhcp_client import BROADCAST, Outgoing

SERVER_PORT, CLIENT_PORT = 67, 68
ETH_P_IP = 0x0800
SO_ATTACH_FILTER = 26
BROADCAST_MAC = b"\xff" * 6
MAX_PACKET_SIZE = 65_535
TTL = 64

_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 9),  # ldb [9]                 the protocol
        (0x15, 0, 6, socket.IPPROTO_UDP),  # jeq    other: drop
        (0x28, 0, 0, 6),  # ldh [6]                 flags and fragment offset
        (0x45, 4, 0, 0x3FFF),  # jset               a fragment: drop
        (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf)        the header's length
        (0x48, 0, 0, 2),  # ldh [x + 2]             the destination port
        (0x15, 0, 1, CLIENT_PORT),  # jeq           other: drop
        (0x06, 0, 0, MAX_PACKET_SIZE),  # ret       take
        (0x06, 0, 0, 0),  # ret                     drop
    )
)
_INSTRUCTION_SIZE = 8
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")


class DhcpPort:
    """Port 68 of a device."""

    def __init__(self, interface: str) -> None:
        """Raises OSError, PermissionError without CAP_NET_RAW."""
        self._interface = interface
        self._server_mac = BROADCAST_MAC
        """Who brought us a message last: where a message to that server alone goes."""
        self._socket = _packet_socket()
        program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
        count = len(_FILTER) // _INSTRUCTION_SIZE
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(program))
        )
        self._socket.bind((interface, ETH_P_IP))
        self._claim = _claim_port(interface)

    def fileno(self) -> int:
        """Readable when a message is there."""
        return self._socket.fileno()

    def close(self) -> None:
        """No more messages."""
        self._socket.close()
        self._claim.close()

    def send(self, message: Outgoing) -> None:
        """Raises OSError where the device is down or gone."""
        mac = BROADCAST_MAC if message.dst == BROADCAST else self._server_mac
        packet = push_packet(message)
        with contextlib.suppress(BlockingIOError):  # the device's queue is full; there will be another try
            self._socket.sendto(packet, (self._interface, ETH_P_IP, 0, 0, mac))

    def receive(self) -> bytes | None:
        """The next message; None: there is none now. Raises OSError where the device is down or gone."""
        while True:
            try:
                packet, address = self._socket.recvfrom(MAX_PACKET_SIZE)
            except BlockingIOError:
                return None
            payload = pull_packet(packet)
            if payload is not None:
                self._server_mac = address[4]
                return payload


def push_packet(message: Outgoing) -> bytes:
    """An IPv4 packet with the message in it."""
    length = _UDP.size + len(message.payload)
    src, dst = message.src.packed, message.dst.packed
    pseudo = src + dst + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    ports = (CLIENT_PORT, SERVER_PORT, length)
    # RFC 768: a checksum that comes out as zero is sent as ones, for zero says that there is none.
    udp_checksum = _checksum(pseudo + _UDP.pack(*ports, 0) + message.payload) or 0xFFFF
    fields = (0x45, 0, _IP.size + length, 0, 0x4000, TTL, socket.IPPROTO_UDP)
    ip_checksum = _checksum(_IP.pack(*fields, 0, src, dst))
    return _IP.pack(*fields, ip_checksum, src, dst) + _UDP.pack(*ports, udp_checksum) + message.payload


def pull_packet(packet: bytes) -> bytes | None:
    """The payload of a UDP packet that the filter let through; None where its lengths contradict one another.

    Checksums are not looked at: the link is a socket, and what it brings need not have any.
    """
    if len(packet) < _IP.size:
        return None
    header_size, (total,) = (packet[0] & 0xF) * 4, struct.unpack_from("!H", packet, 2)
    if header_size < _IP.size or not header_size + _UDP.size <= total <= len(packet):
        return None
    source, _, length, _ = _UDP.unpack_from(packet, header_size)
    if source != SERVER_PORT or not _UDP.size <= length <= total - header_size:
        return None
    return packet[header_size + _UDP.size : header_size + length]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _packet_socket() -> socket.socket:
    """It gets nothing before it is bound, for its protocol is 0."""
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        raise PermissionError(error.errno, f"{error.strerror}; DHCP takes CAP_NET_RAW, or use --dhcp none") from error


def _claim_port(interface: str) -> socket.socket:
    """Hold the port in the kernel's UDP too, or it answers a server's unicast with 'port unreachable'."""
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    claim.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    with contextlib.suppress(OSError):  # another client's: it serves as well
        claim.bind(("", CLIENT_PORT))
    return claim
