"""Go's encodings and errors, where the routes' own tests do not reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.golang import GoError, decode_value, encode_value, read_struct, split_host_port


@pytest.mark.parametrize(
    ("address", "host", "port"), [("a:1", "a", "1"), (":1", "", "1"), ("[::1]:1", "::1", "1"), ("a:", "a", "")]
)
def test_split_host_port_takes_what_go_takes(address: str, host: str, port: str) -> None:
    assert split_host_port(address) == (host, port)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "missing port in address"),
        ("[::1]", "address [::1]: missing port in address"),
        ("::1", "address ::1: too many colons in address"),
        ("[::1:80", "address [::1:80: missing ']' in address"),
        ("[::1]x:80", "address [::1]x:80: missing port in address"),
        ("[::1]:1:80", "address [::1]:1:80: too many colons in address"),
        ("a]b:80", "address a]b:80: unexpected ']' in address"),
    ],
)
def test_split_host_port_refuses_in_gos_words(address: str, problem: str) -> None:
    with pytest.raises(GoError) as refused:
        split_host_port(address)
    assert str(refused.value) == problem


def test_encode_value_is_compact_and_escapes_html() -> None:
    assert encode_value({"a": ["<&>", "\u00e9\u2028"]}) == '{"a":["\\u003c\\u0026\\u003e","é\\u2028"]}\n'


@given(st.binary(max_size=60) | st.text(max_size=60, alphabet='{}[]",:\\0123456789aeIN-. \n').map(str.encode))
def test_any_body_is_either_read_or_refused(body: bytes) -> None:
    try:
        fields = read_struct(decode_value(body), "ExposeRequest", {"local": str})
    except GoError:
        return
    assert fields.keys() <= {"local"}


@given(st.text(max_size=30))
def test_any_address_is_either_split_or_refused(text: str) -> None:
    try:
        host, port = split_host_port(text)
    except GoError:
        return
    assert host in text
    assert ":" not in port
