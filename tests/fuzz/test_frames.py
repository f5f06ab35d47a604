"""A short run of the hostile guest; `make asan` runs it longer, where every access is checked."""

import os
import random

import pytest

from tests.fuzz.frames import fuzz, mutate
from tests.worker.framebed import udp

SECONDS = float(os.environ.get("MOORAGE_FUZZ_SECONDS", "3"))


@pytest.mark.timeout(SECONDS + 120)
def test_a_hostile_guest_breaks_nothing() -> None:
    assert fuzz(SECONDS, random.SystemRandom().randrange(1 << 32)) > 0


def test_the_hostile_guest_can_be_played_again() -> None:
    frame = udp(b"payload", 80)
    assert [mutate(random.Random(7), frame) for _ in range(2)] == [mutate(random.Random(7), frame)] * 2
