import pytest

from supervisor.attach.kinds import KINDS, parse_listener
from supervisor.attach.options import Options
from supervisor.endpoints import TcpEndpoint, UnixEndpoint


def test_a_listener_is_a_kind_a_url_and_options() -> None:
    spec = parse_listener("qemu=unix:///run/q,allow-uid=1000+0")
    assert (spec.kind, spec.endpoint) == ("qemu", UnixEndpoint("/run/q"))
    assert spec.options == Options(allow_uid=frozenset({0, 1000}))
    assert parse_listener("qemu=tcp://[::1]:9000").endpoint == TcpEndpoint("::1", 9000)


@pytest.mark.parametrize("text", ["", "qemu", "unix:///run/q", "telegraph=unix:///run/q"])
def test_an_unknown_kind_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=f"expected KIND=URL with KIND one of {', '.join(sorted(KINDS))}; got"):
        parse_listener(text)


@pytest.mark.parametrize("url", ["", "unix://x", "udp://h:1", "unix:///x?y"])
def test_a_url_that_the_kind_does_not_take_is_refused_with_those_it_takes(url: str) -> None:
    with pytest.raises(ValueError, match="expected qemu=unix:///PATH or qemu=tcp://HOST:PORT, got 'qemu="):
        parse_listener(f"qemu={url}")


def test_users_cannot_be_told_apart_on_tcp() -> None:
    with pytest.raises(ValueError, match="expected no allow-uid behind tcp://h:1"):
        parse_listener("qemu=tcp://h:1,allow-uid=1000")
