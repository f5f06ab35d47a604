"""An engine with a guest and a host around it, in each of its forms."""

from collections.abc import Iterator
from itertools import product

import pytest

from tests.worker.framebed import Bed


@pytest.fixture(params=list(product(("stream32", "stream16"), ("epoll", "poll"))), ids="-".join)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    bed = Bed(*request.param)
    yield bed
    bed.close()


@pytest.fixture
def one_bed() -> Iterator[Bed]:
    """For what has nothing to do with framing or readiness."""
    bed = Bed()
    yield bed
    bed.close()
