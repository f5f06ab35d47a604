import contextlib
import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import codec, events, messages
from proto.errors import CodecError

NETWORK = messages.Network(
    name="default",
    subnet="192.168.127.0/24",
    gateway_ip="192.168.127.1",
    gateway_mac="5a:94:ef:e4:0c:dd",
    host_ip="192.168.127.254",
    mtu=1500,
    lease_time=3600,
    zones=(messages.Zone("containers.internal.", (messages.ZoneRecord("192.168.127.1", name="gateway"),)),),
    search_domains=("example.org",),
    upstreams=(messages.Upstream("1.1.1.1"),),
    nat={"192.168.127.254": "127.0.0.1"},
)
MESSAGES = [
    kind
    for kind in (vars(messages) | vars(events)).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]


@pytest.mark.parametrize(
    "message",
    [
        NETWORK,
        messages.Spawn("vm1", "stream32", NETWORK, "ipc:///x", resync=True),
        messages.WorkerStats("vm1", {"tcp.flows": 3}),
        messages.Vms((messages.Vm("vm1", "default", "qemu", "unix:///x", "uid=0", 7, 1.5, 0),)),
        messages.Empty(),
    ],
)
def test_a_message_survives_the_wire(message: object) -> None:
    assert codec.decode(codec.encode(message, 7, reply=True)) == codec.Envelope(7, True, message)


def test_every_message_class_is_known() -> None:
    for kind in MESSAGES:
        with pytest.raises(CodecError) as refused:
            codec.decode(msgpack.packb([codec.VERSION, kind.__name__, 1, False, {"no such field": 1}]))
        assert "unknown" not in str(refused.value)


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        ([2, "Shutdown", 0, False, {}], "version"),
        ([True, "Shutdown", 0, False, {}], "version"),
        ([1, "Shutdown", 0, False], "five"),
        ({"version": 1}, "five"),
        ([1, "Shutdown", -1, False, {}], "request id"),
        ([1, "Shutdown", 1 << 63, False, {}], "request id"),
        ([1, "Shutdown", 0, 1, {}], "reply"),
        ([1, "Explode", 9, False, {}], "unknown message type 'Explode'"),
        ([1, ["Shutdown"], 9, False, {}], "unknown message type"),
        ([1, "Shutdown", 9, False, {"now": True}], "now"),
        ([1, "Spawned", 9, False, {"vm_id": "vm1"}], "pid"),
        ([1, "Spawned", 9, False, {"vm_id": "vm1", "pid": "7"}], "pid"),
        ([1, "Spawned", 9, False, {"vm_id": "vm1", "pid": True}], "pid"),
        ([1, "Spawned", 9, False, {"vm_id": b"vm1", "pid": 7}], "vm_id"),
        ([1, "Spawned", 9, False, [1, 2]], "Spawned"),
        ([1, "AddZone", 9, False, {"zone": {"name": "x.", "records": [{"ip": 1}]}}], "zone.records.0.ip"),
        ([1, "Failure", 9, True, {"code": "oops", "message": "x"}], "code"),
    ],
)
def test_a_malformed_message_is_refused_and_says_where(envelope: object, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        codec.decode(msgpack.packb(envelope))


def test_a_refused_request_keeps_its_id_so_that_it_can_be_answered() -> None:
    with pytest.raises(CodecError) as refused:
        codec.decode(msgpack.packb([1, "Spawned", 9, False, {}]))
    assert refused.value.request_id == 9


def test_a_message_at_the_size_limit_passes_and_one_byte_more_is_refused() -> None:
    overhead = len(codec.encode(messages.Failure("internal", "x" * 70_000))) - 70_000
    at_limit = messages.Failure("internal", "x" * (codec.MAX_MESSAGE_SIZE - overhead))
    assert codec.decode(codec.encode(at_limit)).message == at_limit
    with pytest.raises(CodecError, match="limit"):
        codec.encode(messages.Failure("internal", at_limit.message + "x"))
    with pytest.raises(CodecError, match="limit"):
        codec.decode(b"\xc0" * (codec.MAX_MESSAGE_SIZE + 1))


def test_a_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(CodecError, match="Failure: a text is no UTF-8"):
        codec.encode(messages.Failure("internal", "\udcff"))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_quietly(data: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(data)


@given(st.binary(min_size=1, max_size=8), st.integers(min_value=0, max_value=200))
def test_a_damaged_message_is_decoded_or_refused_but_never_breaks_the_codec(noise: bytes, at: int) -> None:
    data = codec.encode(NETWORK, 3)
    damaged = data[:at] + noise + data[at + len(noise) :]
    with contextlib.suppress(CodecError):
        codec.decode(damaged)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(CodecError):
        codec.decode(b"\x91" * 100_000)
