"""Byte rings and their pool: bytes stay in order, memory is bounded, used again, and given back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.ring import ByteRing, Pool

KIB = 1024
LARGEST = 1024 * KIB
CACHE = 4096 * KIB


def ring_of(pool: Pool, size: int) -> ByteRing:
    ring = ByteRing(pool)
    assert ring.reserve(size)
    return ring


@pytest.mark.parametrize(
    ("wanted", "size"),
    [(1, 4), (4 * KIB, 4), (4 * KIB + 1, 16), (16 * KIB + 1, 64), (65 * KIB, 256), (257 * KIB, 1024), (LARGEST, 1024)],
)
def test_a_ring_is_the_smallest_block_that_is_large_enough(wanted: int, size: int) -> None:
    pool = Pool(2 * LARGEST)
    assert ring_of(pool, wanted).size == size * KIB


def test_nothing_larger_than_the_largest_block_is_made() -> None:
    pool = Pool(4 * LARGEST)
    assert not ByteRing(pool).reserve(LARGEST + 1)
    assert not ByteRing(pool).reserve(2**63)
    assert pool.in_use == 0


def test_a_ring_that_grows_keeps_its_bytes_across_the_wrap() -> None:
    pool = Pool(LARGEST)
    ring = ring_of(pool, 4096)
    ring.append(bytes(3000))
    ring.discard(2999)
    ring.append(b"x" * 2000)
    assert len(ring.pieces(0, 2001)) == 2
    assert ring.reserve(5000)
    assert ring.pieces(0, 2001) == [b"\0" + b"x" * 2000]
    assert pool.in_use == 16 * KIB


def test_an_empty_ring_starts_at_the_beginning_again() -> None:
    ring = ring_of(Pool(LARGEST), 4096)
    ring.append(bytes(3000))
    ring.discard(3000)
    ring.append(bytes(4096))
    assert [len(piece) for piece in ring.pieces(0, 4096)] == [4096]


def test_the_pool_hands_out_no_more_than_its_limit_counting_both_blocks_while_one_grows() -> None:
    pool = Pool(20 * KIB)
    ring = ring_of(pool, 4096)
    assert not ByteRing(pool).reserve(20 * KIB)
    assert ring.reserve(16 * KIB)
    other = ring_of(pool, 1)
    assert not ByteRing(pool).reserve(1)
    assert pool.in_use == 20 * KIB
    other.release()
    assert pool.in_use == 16 * KIB


def test_a_ring_that_cannot_grow_keeps_what_it_has() -> None:
    pool = Pool(16 * KIB)
    ring = ring_of(pool, 4096)
    ring.append(b"kept")
    assert not ring.reserve(8192)
    assert (ring.size, ring.pieces(0, 4)) == (4096, [b"kept"])


def test_freed_blocks_are_used_again_up_to_a_limit() -> None:
    pool = Pool(8 * LARGEST)
    rings = [ring_of(pool, LARGEST) for _ in range(6)]
    for ring in rings:
        ring.release()
    assert (pool.in_use, pool.cached) == (0, CACHE)
    ring_of(pool, LARGEST).release()
    assert (pool.in_use, pool.cached) == (0, CACHE)


def test_while_the_link_points_into_rings_nothing_released_is_used_again() -> None:
    pool = Pool(LARGEST)
    ring = ring_of(pool, 4096)
    pool.pin()
    ring.release()
    assert (pool.in_use, pool.cached) == (4096, 0), "it still counts against the limit"
    pool.unpin()
    assert (pool.in_use, pool.cached) == (0, 4096)


def test_a_ring_that_is_dropped_gives_its_memory_back() -> None:
    pool = Pool(LARGEST)
    ring = ring_of(pool, 100)
    assert pool.in_use == 4096
    del ring
    assert pool.in_use == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=3000), st.integers(0, 3000)), max_size=60))
def test_bytes_come_out_as_they_went_in(steps: list[tuple[bytes, int]]) -> None:
    pool = Pool(LARGEST)
    ring = ByteRing(pool)
    expected = b""
    for added, taken in steps:
        if not ring.reserve(len(expected) + len(added)):
            continue
        ring.append(added)
        expected += added
        taken = min(taken, len(expected))
        ring.discard(taken)
        expected = expected[taken:]
        assert len(ring) == len(expected)
        assert b"".join(ring.pieces(0, len(expected))) == expected
        middle = len(expected) // 2
        assert b"".join(ring.pieces(middle, len(expected) - middle)) == expected[middle:]
    ring.release()
    assert pool.in_use == 0
