"""A short run of the hostile worker; `make asan` runs it longer, where every access is checked."""

import random

import pytest

from tests.fuzz.frames import fuzz
from tests.fuzz.peers import Episode
from tests.fuzz.test_frames import SECONDS


@pytest.mark.timeout(SECONDS + 120)
def test_a_hostile_worker_breaks_nothing() -> None:
    assert fuzz(SECONDS, random.SystemRandom().randrange(1 << 32), Episode) > 0
