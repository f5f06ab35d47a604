"""Servers that play the host's side: HTTP files with their SHA-256, UDP echo, DNS.

Each is a context manager, answers in threads of its own, and may live in another network namespace than the test.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qs, urlsplit

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.zone

from tests.guests.namespace import Namespace

CHUNK = 1 << 20


class FileServer:
    """``GET /data?size=N``: N bytes that repeat late; ``POST /any``: takes a body of any length."""

    def __init__(self) -> None:
        self.port = 0
        self.received: dict[str, tuple[int, str]] = {}
        """By path of the POST: size and SHA-256 of its body."""

    def data(self, size: int) -> Iterator[bytes]:
        """The bytes of a GET, in pieces; a block that went missing or came twice changes them."""
        block = hashlib.shake_128(b"moorage").digest(CHUNK)
        for number, start in enumerate(range(0, size, CHUNK)):
            yield (number.to_bytes(8, "big") + block[8:])[: size - start]

    def sha256(self, size: int) -> str:
        """Of the bytes of a GET."""
        return digest(self.data(size))


def digest(pieces: Iterable[bytes]) -> str:
    """SHA-256 of all pieces, in hexadecimal."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


@contextlib.contextmanager
def file_server(host: Namespace, address: str = "127.0.0.1") -> Iterator[FileServer]:
    """An HTTP server in a namespace, at a free port."""
    files = FileServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(parse_qs(urlsplit(self.path).query).get("size", ["0"])[0])
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the guest may stop reading
                for piece in files.data(size):
                    self.wfile.write(piece)

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            total, left = hashlib.sha256(), size
            while left and (piece := self.rfile.read1(min(CHUNK, left))):
                total.update(piece)
                left -= len(piece)
            files.received[self.path] = (size - left, total.hexdigest())
            body = total.hexdigest().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    with host.entered():
        server = http.server.ThreadingHTTPServer((address, 0), Handler)
    files.port = server.server_address[1]
    with serving(server):
        yield files


@contextlib.contextmanager
def udp_echo(host: Namespace, address: str = "127.0.0.1") -> Iterator[int]:
    """Answers every datagram with itself; yields its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            with contextlib.suppress(OSError):
                sock.sendto(data, self.client_address)

    class Server(socketserver.UDPServer):
        max_packet_size = 65507

    with host.entered():
        server = Server((address, 0), Handler)
    with serving(server):
        yield server.server_address[1]


class Names:
    """What a DNS server answers: a zone text, and how often it was asked."""

    def __init__(self, zone: str, address: str, port: int) -> None:
        self._zone = dns.zone.from_text(zone, origin=".", relativize=False, check_origin=False)
        self.address = address
        self.port = port
        self.questions: list[tuple[str, str]] = []
        """(name, type) of every query, in order."""
        self.failing: set[str] = set()
        """Names that are answered with SERVFAIL."""
        self.silent = False
        """Whether it answers nothing, as a server that cannot be reached."""

    def answer(self, wire: bytes, max_size: int) -> bytes | None:
        """The response to a query; cut, with TC, to `max_size` or what its EDNS allows. None: not a query."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        response = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        self.questions.append((question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
        name = question.name
        if self.silent:
            return None
        if name.to_text() in self.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
            return response.to_wire()
        node = self._zone.get_node(name)
        while node is not None:
            found = node.get_rdataset(dns.rdataclass.IN, question.rdtype)
            alias = None if found else node.get_rdataset(dns.rdataclass.IN, dns.rdatatype.CNAME)
            for rdataset in filter(None, (found, alias)):
                response.answer.append(dns.rrset.from_rdata_list(name, rdataset.ttl, list(rdataset)))
            if alias is None:
                break
            name = alias[0].target
            node = self._zone.get_node(name)
        if self._zone.get_node(question.name) is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        size = max_size if max_size > 512 else max(512, query.payload)
        try:
            return response.to_wire(max_size=size)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()


@contextlib.contextmanager
def dns_server(host: Namespace, zone: str, address: str = "127.0.0.1", port: int = 53) -> Iterator[Names]:
    """Answers from `zone` (master file text, absolute names) over UDP and TCP. Port 53, as resolv.conf has no other."""

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, sock = self.request
            answer = names.answer(wire, 512)
            if answer is not None:
                sock.sendto(answer, self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while len(length := self.rfile.read(2)) == 2:
                answer = names.answer(self.rfile.read(int.from_bytes(length, "big")), 65535)
                if answer is None:
                    return
                self.wfile.write(len(answer).to_bytes(2, "big") + answer)

    class StreamServer(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with host.entered():
        datagrams = socketserver.UDPServer((address, port), Datagram)
        streams = StreamServer((address, datagrams.server_address[1]), Stream)
    names = Names(zone, address, datagrams.server_address[1])
    with serving(datagrams), serving(streams):
        yield names


@contextlib.contextmanager
def tcp_server(host: Namespace, handle: Callable[[socket.socket], None], address: str = "127.0.0.1") -> Iterator[int]:
    """Runs `handle` in a thread for each connection, then closes it; yields its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with host.entered():
        server = Server((address, 0), Handler)
    with serving(server):
        yield server.server_address[1]


class UnixServer(socketserver.ThreadingUnixStreamServer):
    """On a path."""

    daemon_threads = True
    request_queue_size = 100


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Answer in a thread during the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
