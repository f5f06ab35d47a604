import random

from worker.switch.mac_table import MacTableFace

SECOND = 1_000_000
CAPACITY = 2048


def mac(number: int) -> bytes:
    return b"\x52\x54" + number.to_bytes(4, "big")


def test_what_was_put_is_found_and_nothing_else() -> None:
    table = MacTableFace(7)
    numbers = random.Random(1).sample(range(1 << 32), 500)
    for peer, number in enumerate(numbers, 1):
        assert table.put(mac(number), peer, False, SECOND)
    assert [table.find(mac(number), SECOND) for number in numbers] == list(range(1, 501))
    assert table.find(mac(numbers[0] ^ 1), SECOND) == 0


def test_what_was_learned_is_forgotten_after_five_minutes_without_a_frame() -> None:
    table = MacTableFace(7)
    table.put(mac(1), 1, True, 0)
    table.put(mac(2), 2, False, 0)
    table.put(mac(1), 1, True, 200 * SECOND)
    assert table.find(mac(1), 499 * SECOND) == 1
    assert table.find(mac(1), 501 * SECOND) == 0
    assert table.find(mac(2), 501 * SECOND) == 2


def test_what_the_supervisor_told_goes_before_what_is_heard() -> None:
    table = MacTableFace(7)
    table.put(mac(1), 1, False, 0)
    assert not table.put(mac(1), 2, True, 0)
    assert table.find(mac(1), 0) == 1
    table.put(mac(3), 2, True, 0)
    assert table.put(mac(3), 1, True, 0)
    assert table.find(mac(3), 0) == 1
    assert table.put(mac(3), 2, False, 0)
    assert table.find(mac(3), 0) == 2


def test_all_of_a_peer_is_forgotten_at_once() -> None:
    table = MacTableFace(7)
    for number in range(100):
        table.put(mac(number), 1 + number % 2, number % 3 == 0, SECOND)
    table.forget(1)
    assert [table.find(mac(number), SECOND) for number in range(100)] == [0, 2] * 50


def test_a_full_table_takes_more_only_once_something_is_stale() -> None:
    table = MacTableFace(7)
    taken = [table.put(mac(number), 1, True, SECOND) for number in range(CAPACITY + 100)]
    assert taken == [True] * CAPACITY + [False] * 100
    assert table.find(mac(0), SECOND) == 1
    assert table.put(mac(CAPACITY), 1, True, 400 * SECOND)
    assert table.find(mac(0), 400 * SECOND) == 0
