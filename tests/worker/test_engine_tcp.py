"""TCP through the engine: handshake, data, closing, as the guest and the host see them."""

import contextlib
import hashlib
import random
import socket

import dpkt
import pytest
from dpkt.tcp import TH_ACK, TH_FIN, TH_PUSH, TH_RST, TH_SYN

from tests.worker.framebed import TCP, Bed
from tests.worker.guest_tcp import ISN, GuestTcp
from worker.upcalls import Action, Upcall


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def opened(bed: Bed, window: int = 65535) -> tuple[GuestTcp, socket.socket]:
    """A connection of the guest to the host, both its ends."""
    server = bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    guest_end = GuestTcp(bed, window=window).open()
    return guest_end, bed.accept(server)


def opened_local(bed: Bed) -> tuple[GuestTcp, socket.socket]:
    """A connection of the guest to a service of the gateway: its buffers are small, and fill at once."""
    bed.judge(TCP, Action.LOCAL)
    guest_end = GuestTcp(bed).open()
    return guest_end, bed.keep(socket.socket(fileno=bed.expect_upcall(Upcall.STREAM)[1]))


# --- opening


def test_the_guest_is_answered_when_the_host_connection_is_up(one_bed: Bed) -> None:
    server = one_bed.tcp_server(backlog=0)
    port = server.getsockname()[1]
    queued = [one_bed.connect(port) for _ in range(3)]  # fills the backlog: a further SYN is dropped
    one_bed.allow(TCP, port)
    guest = GuestTcp(one_bed)
    guest.syn()
    assert guest.hears_nothing()
    for _ in range(len(queued) + 1):
        with contextlib.suppress(BlockingIOError):
            one_bed.keep(server.accept()[0])
    guest.take_syn(guest.hear(TH_SYN | TH_ACK))


def test_the_syn_ack_announces_the_mtu_and_mirrors_what_the_guest_offered(bed: Bed) -> None:
    server = bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    plain, full = GuestTcp(bed, sport=1), GuestTcp(bed, sport=2)
    bed.send(plain.segment(TH_SYN))
    assert dict(dpkt.tcp.parse_opts(plain.hear(TH_SYN | TH_ACK).opts)) == {2: (1460).to_bytes(2, "big")}
    timestamp = bytes.fromhex("080a0000002a00000000")
    bed.send(full.segment(TH_SYN, opts=bytes.fromhex("020405b4 0402 030307 01") + timestamp + b"\1\1"))
    options = dict(dpkt.tcp.parse_opts(full.hear(TH_SYN | TH_ACK).opts))
    assert options[dpkt.tcp.TCP_OPT_WSCALE] == b"\7"
    assert options[dpkt.tcp.TCP_OPT_SACKOK] == b""
    assert options[dpkt.tcp.TCP_OPT_TIMESTAMP][4:] == (42).to_bytes(4, "big")


def test_a_refused_connection_is_reset_at_once(bed: Bed) -> None:
    closed = bed.tcp_server()
    bed.allow(TCP, closed.getsockname()[1])
    closed.close()
    guest = GuestTcp(bed)
    guest.syn()
    reset = guest.hear(TH_RST | TH_ACK)
    assert (reset.seq, reset.ack) == (0, ISN + 1)
    assert bed.counter("tcp.connect_failed") == bed.counter("tcp.attempt_fails") == bed.counter("tcp.closed") == 1
    assert bed.counter("tcp.flows") == 0


def test_a_repeated_syn_does_not_make_a_second_connection(bed: Bed) -> None:
    server = bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    guest = GuestTcp(bed)
    guest.syn()
    guest.hear(TH_SYN | TH_ACK)
    guest.next = ISN
    guest.syn()
    guest.take_syn(guest.hear(TH_SYN | TH_ACK))
    bed.settle()
    assert bed.counter("tcp.opened_by_guest") == 1


def test_a_segment_of_no_connection_is_reset_and_a_reset_is_not_answered(bed: Bed) -> None:
    guest = GuestTcp(bed)
    guest.expected = 7777
    bed.send(guest.segment(TH_RST), guest.segment(TH_RST | TH_ACK), guest.segment(TH_ACK, b"data"))
    assert guest.hear(TH_RST).seq == 7777
    bed.send(guest.segment(TH_FIN, b"data"))
    reset = guest.hear(TH_RST | TH_ACK)
    assert (reset.seq, reset.ack) == (0, ISN + 5)
    assert guest.hears_nothing()
    assert bed.counter("tcp.no_flow") == 4


def test_beyond_the_limit_of_flows_a_connection_is_refused(one_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (80, 80))
    bed = Bed()
    try:
        server = bed.tcp_server(backlog=64)
        bed.allow(TCP, server.getsockname()[1])
        for port in range(16):
            GuestTcp(bed, sport=port + 1).open()
        beyond = GuestTcp(bed, sport=99)
        beyond.syn()
        beyond.hear(TH_RST | TH_ACK)
        assert bed.counter("tcp.over_limit") == 1
        assert bed.counter("tcp.flows") == 16
    finally:
        bed.close()


# --- carrying


@pytest.mark.parametrize("size", [1, 1460, 1461, 150_000])
def test_what_the_guest_writes_the_host_reads(bed: Bed, size: int) -> None:
    guest, host = opened(bed)
    data = noise(size)
    received = bytearray()
    if size > 60_000:  # more than one window: the host reads while the guest writes
        for start in range(0, size, 30_000):
            guest.write(data[start : start + 30_000])
            received += bed.receive(host, min(30_000, size - start))
    else:
        guest.write(data)
        received += bed.receive(host, size)
    assert bytes(received) == data


@pytest.mark.parametrize("size", [1, 1460, 1461, 150_000])
def test_what_the_host_writes_the_guest_reads(bed: Bed, size: int) -> None:
    guest, host = opened(bed)
    data = noise(size)
    assert host.send(data) == size
    assert guest.read(size) == data
    assert bed.counter("flow.bytes_to_guest") == size


@pytest.mark.parametrize("options", ["", "0402 0101"], ids=["fast_recoveries", "sack_recoveries"])
def test_a_recovery_is_counted_once_and_so_is_each_report_of_duplicates(one_bed: Bed, options: str) -> None:
    bed, server = one_bed, one_bed.tcp_server()
    bed.allow(TCP, server.getsockname()[1])
    guest = GuestTcp(bed)
    guest.say(TH_SYN, opts=bytes.fromhex("020405b4" + options))
    guest.take_syn(guest.hear(TH_SYN | TH_ACK))
    host = bed.accept(server)
    host.send(noise(10 * 1460))
    first = guest.hear(TH_ACK)
    start = first.seq

    def sack(segment: int) -> bytes:
        block = [(start + number * 1460).to_bytes(4, "big") for number in (segment, segment + 1)]
        return b"\1\1\5\x0a" + b"".join(block) if options else b""

    for segment in range(1, 6):
        guest.say(TH_ACK, opts=sack(segment))
    while (again := guest.hear(TH_ACK)).seq != start:
        pass
    assert again.data == first.data
    guest.expected += 1460
    guest.say(TH_ACK, opts=sack(0))
    bed.settle()
    recoveries = [bed.counter(f"tcp.{name}") for name in ("fast_recoveries", "sack_recoveries", "dsacks")]
    assert recoveries == ([0, 1, 1] if options else [1, 0, 0])


def test_segments_out_of_order_and_repeated_make_the_same_stream(bed: Bed) -> None:
    guest, host = opened(bed)
    data = noise(20_000)
    pieces = [(at, data[at : at + 1000]) for at in range(0, len(data), 1000)]
    random.Random(1).shuffle(pieces)
    start = guest.next
    for at, piece in pieces + pieces[:5]:
        bed.send(guest.segment(TH_ACK, piece, seq=start + at))
    bed.send(guest.segment(TH_ACK, data[500:2500], seq=start + 500))
    assert bed.receive(host, len(data)) == data


def test_more_segments_in_one_read_than_there_are_slices_all_arrive_before_the_end(bed: Bed) -> None:
    guest, host = opened(bed)
    data = noise(4_200)  # segments of one byte each, which fit into one recv of a stream link
    start = guest.next
    last = guest.segment(TH_ACK | TH_FIN, data[4_096:], seq=start + 4_096)
    bed.send(*(guest.segment(TH_ACK, data[i : i + 1], seq=start + i) for i in range(4_096)), last)
    assert bed.receive(host, len(data)) == data
    bed.run_until(lambda: bed.at_end(host))


def fill(bed: Bed, guest: GuestTcp, host: socket.socket) -> bytes:
    """Write until the host's socket takes no more, so that a few bytes wait in the engine; what was written."""
    data = bytearray()
    while bed.counter("flow.bytes_from_guest") == len(data):
        assert guest.allowed - guest.next > 8_000, "the window closed before the host's socket was full"
        for _ in range(8):
            guest.say(TH_ACK, noise(1460))
            data += noise(1460)
        bed.settle()
        drain(guest)
    return bytes(data)


def drain(guest: GuestTcp) -> None:
    """Take in the acknowledgments that have come."""
    while any(guest.is_ours(frame.data) for frame in guest.bed.inbox):
        guest.hear()


def test_a_slow_host_closes_the_guests_window_and_a_reading_host_opens_it(bed: Bed) -> None:
    guest, host = opened_local(bed)
    data = bytearray()
    while guest.allowed > guest.next:
        piece = noise(min(1460, guest.allowed - guest.next))
        guest.say(TH_ACK, piece)
        data += piece
        assert len(data) < 16_000_000, "the window never closed"
        if len(data) % 14600 == 0 or guest.allowed - guest.next < 1460:
            bed.settle()
            drain(guest)
    assert bed.counter("memory.rings") > 0
    closed_at = guest.allowed
    assert hashlib.sha256(bed.receive(host, len(data))).digest() == hashlib.sha256(data).digest()
    while guest.allowed <= closed_at:
        guest.hear(TH_ACK)
    guest.write(b"and on")
    assert bed.receive(host, 6) == b"and on"
    bed.settle()
    assert bed.counter("memory.rings") == 0


def test_a_guest_that_overruns_its_window_is_cut_to_it(bed: Bed) -> None:
    guest, host = opened(bed)
    start = guest.next
    bed.send(guest.segment(TH_ACK, b"beyond", seq=guest.allowed + 10))
    guest.hear(TH_ACK)
    guest.write(b"within")
    assert bed.receive(host, 6) == b"within"
    assert guest.next == start + 6
    assert bed.counter("tcp.dropped") == 1


def test_a_slow_guest_stops_the_reading_of_the_host(bed: Bed) -> None:
    guest, host = opened(bed, window=1000)  # 4,000 bytes
    host.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = noise(3_000_000)
    sent = 0
    for _ in range(50):
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += host.send(data[sent : sent + 65536])
        bed.turn()
    assert bed.counter("flow.bytes_to_guest") <= 8_000
    assert bed.counter("memory.rings") <= 65536
    assert sent < len(data)
    assert guest.read(4_000) == data[:4_000]


def test_a_window_that_opens_again_is_used(bed: Bed) -> None:
    guest, host = opened(bed, window=500)  # 2,000 bytes
    data = noise(10_000)
    host.send(data)
    first = guest.hear(TH_ACK)
    second = guest.hear(TH_ACK)
    guest.expected += len(first.data) + len(second.data)
    guest.window = 0
    guest.say(TH_ACK)
    assert guest.hears_nothing()
    guest.window = 65535
    guest.say(TH_ACK)
    assert bytes(first.data) + bytes(second.data) + guest.read(8_000) == data


def test_a_link_that_is_not_read_blocks_and_loses_nothing(bed: Bed) -> None:
    guest, host = opened(bed)
    guest.window = 65535
    guest.say(TH_ACK)
    data = noise(1_000_000)
    bed.reading = False
    sent = 0
    deadline = 2000
    # acknowledge what was never read, so that only the link holds the engine back
    while not bed.counter("link.blocked") and deadline:
        with contextlib.suppress(BlockingIOError):
            sent += host.send(data[sent : sent + 65536])
        bed.turn()
        (flow,) = bed.engine.flows()
        bed.send(guest.segment(TH_ACK) if flow[7] == 0 else acknowledge(guest, flow[7]))
        deadline -= 1
    assert bed.counter("link.blocked")
    host.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += host.send(data[sent:])
    before = bed.counter("flow.bytes_to_guest")
    for _ in range(20):
        bed.turn()
    assert bed.counter("flow.bytes_to_guest") == before, "the host is read though the link takes nothing"
    assert bed.counter("link.tx_dropped") == 0
    bed.reading = True
    received = collect(bed, guest, data, sent)
    assert received == data[:sent]


def acknowledge(guest: GuestTcp, size: int) -> bytes:
    """An acknowledgment of `size` bytes of the stream, received or not."""
    kept = guest.expected
    guest.expected = guest.__dict__.setdefault("_first", kept) + size
    frame = guest.segment(TH_ACK)
    guest.expected = kept
    return frame


def collect(bed: Bed, guest: GuestTcp, data: bytes, size: int) -> bytes:
    """The stream from its first byte on, put together from segments in any order; the host writes the rest of it."""
    stream = bytearray(size)
    have = 0
    first = guest.expected
    while have < size:
        segment = guest.hear(TH_ACK)
        at = segment.seq - first
        if at == have and segment.data:
            stream[at : at + len(segment.data)] = segment.data
            have += len(segment.data)
            guest.expected = first + have
            bed.send(guest.segment(TH_ACK))
    return bytes(stream)


# --- closing


def test_the_guest_closes_first_and_the_host_goes_on_sending(bed: Bed) -> None:
    guest, host = opened(bed)
    guest.say(TH_ACK | TH_FIN, b"last words")
    assert bed.receive(host, 10) == b"last words"
    bed.run_until(lambda: bed.at_end(host))
    host.send(noise(5_000))
    assert guest.read(5_000) == noise(5_000)
    host.close()
    guest.hear_fin()
    bed.run_until(lambda: bed.counter("tcp.flows") == 0)


def test_the_host_closes_first_and_the_guest_goes_on_sending(bed: Bed) -> None:
    guest, host = opened(bed)
    host.send(b"last words")
    assert guest.read(10) == b"last words"
    host.shutdown(socket.SHUT_WR)
    guest.hear_fin()
    guest.write(noise(5_000))
    assert bed.receive(host, 5_000) == noise(5_000)
    guest.say(TH_ACK | TH_FIN)
    bed.run_until(lambda: bed.at_end(host))
    bed.run_until(lambda: bed.counter("tcp.time_wait") == 1)


def test_the_hosts_end_comes_after_all_its_data(bed: Bed) -> None:
    guest, host = opened(bed, window=500)
    data = noise(50_000)
    host.send(data)
    host.close()
    assert guest.read(50_000) == data


def test_the_guests_end_comes_after_all_its_data(bed: Bed) -> None:
    guest, host = opened_local(bed)
    backlog = fill(bed, guest, host)
    guest.say(TH_ACK | TH_FIN, b"the end")
    bed.settle()
    assert bed.receive(host, len(backlog) + 7) == backlog + b"the end"
    bed.run_until(lambda: bed.at_end(host))


def test_a_new_connection_on_the_same_ports_waits_until_the_host_has_all_of_the_old_one(bed: Bed) -> None:
    guest, host = opened_local(bed)
    host.shutdown(socket.SHUT_WR)
    guest.hear_fin()
    backlog = fill(bed, guest, host)
    guest.say(TH_ACK | TH_FIN)
    bed.run_until(lambda: bed.counter("tcp.time_wait") == 1)
    again = guest.segment(TH_SYN, seq=guest.next + 100_000)
    bed.send(again)
    bed.settle()
    assert bed.receive(host, len(backlog)) == backlog
    bed.run_until(lambda: bed.at_end(host))
    drain(guest)
    bed.send(again)
    guest.hear(TH_SYN | TH_ACK)


def test_a_reset_of_the_guest_resets_the_host(bed: Bed) -> None:
    guest, host = opened(bed)
    guest.say(TH_RST)
    bed.run_until(lambda: bed.is_reset(host))
    assert bed.counter("tcp.flows") == 0
    assert (bed.counter("tcp.estab_resets"), bed.counter("tcp.attempt_fails")) == (1, 0)


def test_data_just_before_a_reset_of_the_guest_still_goes_out(bed: Bed) -> None:
    guest, _host = opened(bed)
    bed.send(guest.segment(TH_ACK | TH_PUSH, b"bye"), guest.segment(TH_RST, seq=guest.next + 3))
    bed.run_until(lambda: bed.counter("tcp.flows") == 0)
    assert bed.counter("flow.bytes_from_guest") == 3


def test_a_reset_of_the_host_resets_the_guest(bed: Bed) -> None:
    guest, host = opened(bed)
    host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    host.close()
    reset = guest.hear(TH_RST)
    assert reset.seq == guest.expected
    assert bed.counter("tcp.flows") == 0
    assert (bed.counter("tcp.estab_resets"), bed.counter("tcp.attempt_fails")) == (1, 0)


def test_a_reset_outside_the_window_is_ignored(bed: Bed) -> None:
    guest, host = opened(bed)
    bed.send(guest.segment(TH_RST, seq=guest.next - 1), guest.segment(TH_RST, seq=guest.next + 100))
    guest.hear(TH_ACK)  # the challenge of RFC 5961 section 3.2
    guest.write(b"alive")
    assert bed.receive(host, 5) == b"alive"


def test_closing_the_engine_resets_both_sides(bed: Bed) -> None:
    guest, host = opened(bed)
    bed.settle()
    bed.engine.close()
    bed.read()
    assert guest.hear(TH_RST).seq == guest.expected
    assert bed.is_reset(host)
