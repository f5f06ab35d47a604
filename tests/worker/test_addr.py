import pytest

from worker.addr import ipv4_text, mac_text, narrow, pack_ipv4, pack_mac, widen


def test_an_ipv4_address_survives_the_engines_form() -> None:
    packed = pack_ipv4("192.168.127.2")
    assert widen(packed).hex() == "00000000000000000000ffffc0a87f02"
    assert narrow(widen(packed)) == packed
    assert ipv4_text(packed) == "192.168.127.2"


@pytest.mark.parametrize("wide", [b"", bytes(16), b"\xfe\x80" + bytes(14), widen(b"")])
def test_what_is_no_ipv4_address_is_not_narrowed(wide: bytes) -> None:
    assert narrow(wide) is None


def test_a_mac_is_read_and_written() -> None:
    assert mac_text(pack_mac("5a:94:ef:e4:0c:dd")) == "5a:94:ef:e4:0c:dd"
    assert pack_mac("") == b""


@pytest.mark.parametrize("text", ["5a:94", "zz:94:ef:e4:0c:dd", "5a:94:ef:e4:0c:dd:ee"])
def test_what_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - bytes.fromhex and ours say different things
        pack_mac(text)
