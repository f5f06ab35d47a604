import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.services.arp import ArpResponder

GATEWAY_MAC, GUEST_MAC = b"\x5a\x94\xef\xe4\x0c\xdd", b"\x5a\x94\xef\xe4\x0c\xee"
GATEWAY, GUEST, ALIAS = (bytes([192, 168, 127, last]) for last in (1, 2, 254))


def request(target: bytes, sender: bytes = GUEST, op: int = 1) -> bytes:
    arp = dpkt.arp.ARP(op=op, sha=GUEST_MAC, spa=sender, tha=bytes(6), tpa=target)
    return bytes(dpkt.ethernet.Ethernet(dst=b"\xff" * 6, src=GUEST_MAC, type=0x0806, data=arp))


@pytest.fixture
def responder() -> ArpResponder:
    return ArpResponder(GATEWAY_MAC, frozenset({GATEWAY, ALIAS}))


@pytest.mark.parametrize("target", [GATEWAY, ALIAS])
@pytest.mark.parametrize("sender", [GUEST, bytes(4)], ids=["request", "probe"])
def test_the_gateway_and_the_host_alias_are_found(responder: ArpResponder, target: bytes, sender: bytes) -> None:
    frame = responder.receive(request(target, sender) + bytes(18))
    assert frame is not None
    reply = dpkt.ethernet.Ethernet(frame)
    assert (reply.dst, reply.src) == (GUEST_MAC, GATEWAY_MAC)
    assert (reply.arp.op, reply.arp.sha, reply.arp.spa) == (2, GATEWAY_MAC, target)
    assert (reply.arp.tha, reply.arp.tpa) == (GUEST_MAC, sender)
    assert responder.counters["arp.replies"] == 1


def test_nothing_is_said_about_other_addresses(responder: ArpResponder) -> None:
    probe_for_itself, announcement = request(GUEST, bytes(4)), request(GUEST, GUEST)
    another_vm = request(bytes([192, 168, 127, 9]))
    reply_of_a_guest = request(GATEWAY, op=2)
    for frame in (probe_for_itself, announcement, another_vm, reply_of_a_guest):
        assert responder.receive(frame) is None
    assert (responder.counters["arp.requests"], responder.counters["arp.requests_for_others"]) == (3, 3)
    assert responder.counters["arp.replies_received"] == 1


@given(st.binary(max_size=60), st.integers(0, 42))
def test_no_bytes_raise(noise: bytes, length: int) -> None:
    responder = ArpResponder(GATEWAY_MAC, frozenset({GATEWAY}))
    for frame in (noise, request(GATEWAY)[:14] + noise, request(GATEWAY)[:length]):
        responder.receive(frame)


def test_a_cut_request_is_counted(responder: ArpResponder) -> None:
    assert responder.receive(request(GATEWAY)[:41]) is None
    assert responder.counters["arp.malformed"] == 1
