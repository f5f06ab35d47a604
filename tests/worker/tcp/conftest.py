"""Where in the sequence space a test takes place: every one is played at its wrap-around too."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[1000, 2**31 - 1500, 2**32 - 1, 2**32 - 2500], ids=["low", "sign", "wraps-at-once", "wraps"])
def isn(request: pytest.FixtureRequest) -> int:
    """The guest's initial sequence number; ours is derived from it."""
    number: int = request.param
    return number
