"""Fragments of the guest put together, and those that may not be."""

import random
from itertools import permutations

import pytest

from tests.worker.framebed import UDP, Bed, fragment, fragments, udp
from worker.upcalls import Action, Upcall

MAX_DATAGRAMS = 32
WHOLE = udp(random.Random(3).randbytes(92), 80, sport=5000)
"""100 bytes of IPv4 payload."""


@pytest.fixture
def bed(one_bed: Bed) -> Bed:
    one_bed.judge(UDP, Action.LOCAL)
    return one_bed


def payloads(bed: Bed) -> list[bytes]:
    """The UDP payloads that came up whole."""
    bed.settle()
    found = [upcall[1][42:] for upcall in bed.upcalls if upcall[0] == Upcall.FRAME]
    bed.upcalls.clear()
    return found


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_fragments_are_put_together_in_any_order(bed: Bed, order: tuple[int, ...]) -> None:
    pieces = fragments(WHOLE, 24, 64)
    bed.send(*(pieces[n] for n in order))
    assert payloads(bed) == [WHOLE[42:]]
    assert bed.counter("ipv4.reassembling") == 0


def test_fragments_of_several_datagrams_are_told_apart(bed: Bed) -> None:
    first, second = fragments(WHOLE, 48, ident=1), fragments(WHOLE, 48, ident=2)
    bed.send(first[0], second[1], second[0], first[1])
    assert payloads(bed) == [WHOLE[42:]] * 2


def test_a_repeated_fragment_is_ignored(bed: Bed) -> None:
    first, second = fragments(WHOLE, 48)
    bed.send(first, first, second)
    assert payloads(bed) == [WHOLE[42:]]


@pytest.mark.parametrize(("offset", "length"), [(40, 16), (0, 56), (88, 16)])
def test_overlapping_fragments_end_the_datagram(bed: Bed, offset: int, length: int) -> None:
    first, second = fragments(WHOLE, 48)
    middle = fragment(bytes(length), offset, more=True)
    bed.send(first, middle, fragment(bytes(16), 96, more=True), second)
    assert payloads(bed) == []
    assert bed.counter("ipv4.reassembly_dropped") >= 1


def test_bytes_behind_the_end_do_not_stand_in_for_missing_ones(bed: Bed) -> None:
    # as many bytes as the datagram is long, but some lie behind its end: what is missing must not be made up
    header = WHOLE[34:42]
    bed.send(fragment(header, 0, more=True), fragment(bytes(88), 200, more=True), fragment(bytes(4), 96, more=False))
    assert payloads(bed) == []
    assert bed.counter("ipv4.reassembly_dropped") == 1


def test_two_ends_of_one_datagram_end_it(bed: Bed) -> None:
    bed.send(fragment(bytes(8), 80, more=False), fragment(bytes(8), 96, more=False))
    assert payloads(bed) == []
    assert (bed.counter("ipv4.reassembling"), bed.counter("ipv4.reassembly_dropped")) == (0, 1)


def test_fragments_that_cannot_be_part_of_a_datagram_are_dropped(bed: Bed) -> None:
    bed.send(
        fragment(b"", 8, more=True),  # nothing
        fragment(bytes(12), 8, more=True),  # not a multiple of 8
        fragment(bytes(16), 65_512, more=False),  # beyond 65,535 bytes in all
        fragment(bytes(8), 65_528, more=True),
    )
    assert payloads(bed) == []
    assert (bed.counter("ipv4.reassembling"), bed.counter("ipv4.reassembly_dropped")) == (0, 4)


def test_the_oldest_of_too_many_datagrams_makes_room(bed: Bed) -> None:
    pieces = [fragments(WHOLE, 48, ident=n) for n in range(MAX_DATAGRAMS + 1)]
    for first, _ in pieces:
        bed.send(first)
        bed.settle()
    assert bed.counter("ipv4.reassembling") == MAX_DATAGRAMS
    bed.upcalls.clear()
    bed.send(*(second for _, second in pieces[1:]))
    assert payloads(bed) == [WHOLE[42:]] * MAX_DATAGRAMS
    bed.send(pieces[0][1])
    assert payloads(bed) == []


def test_the_largest_datagram_is_put_together(bed: Bed) -> None:
    whole = udp(bytes(65_507), 80)
    bed.send(*fragments(whole, *range(1480, 65_515, 1480)))
    assert payloads(bed) == [bytes(65_507)]


def test_a_datagram_in_pieces_is_held_to_the_same_checks(bed: Bed) -> None:
    wrong = bytearray(WHOLE)
    wrong[60] ^= 1
    bed.send(*fragments(bytes(wrong), 48))
    assert payloads(bed) == []
    assert bed.counter("udp.bad_checksum") == 1
