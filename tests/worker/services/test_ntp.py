import dpkt
from hypothesis import given
from hypothesis import strategies as st

from worker.services.ntp import NtpServer, timestamp

NOW = 1_790_000_000.25


def test_a_client_gets_the_hosts_time_and_its_own_stamp_back() -> None:
    request = bytes([0x23]) + bytes([0, 6]) + bytes(37) + b"originat"
    answer = NtpServer().receive(request, NOW)
    assert answer is not None
    ntp = dpkt.ntp.NTP(answer)
    assert (ntp.v, ntp.mode, ntp.stratum, answer[2]) == (4, 4, 10, 6)
    assert ntp.originate_time == b"originat"
    assert ntp.transmit_time == timestamp(NOW).to_bytes(8, "big")
    assert int.from_bytes(ntp.transmit_time[:4], "big") - 2_208_988_800 == 1_790_000_000
    assert ntp.transmit_time[4:] == b"\x40\0\0\0"


def test_the_clients_version_is_kept() -> None:
    answer = NtpServer().receive(bytes([3 << 3 | 3]) + bytes(47), NOW)
    assert answer is not None
    assert answer[0] >> 3 & 7 == 3


def test_only_clients_are_answered() -> None:
    server = NtpServer()
    for first in [version << 3 | mode for version in range(8) for mode in range(8)]:
        answered = server.receive(bytes([first]) + bytes(47), NOW) is not None
        assert answered == (first & 7 == 3 and 1 <= first >> 3 <= 4)
    assert server.receive(bytes([0x23]) + bytes(46), NOW) is None


@given(st.binary(max_size=100))
def test_no_bytes_raise(noise: bytes) -> None:
    NtpServer().receive(noise, NOW)


def test_time_after_the_first_era_wraps() -> None:
    assert timestamp(2_085_978_496) == 0
