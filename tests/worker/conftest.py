"""An engine with a guest and a host around it, in each of its forms."""

from collections.abc import Iterator

import pytest

from tests.worker.framebed import Bed

FORMS = [
    ("stream32", "epoll"),
    ("stream16", "poll"),
    ("seqpacket", "epoll"),
    ("datagram", "poll"),
    ("tap-vnet", "epoll"),
]


@pytest.fixture(params=FORMS, ids="-".join)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    bed = Bed(*request.param)
    yield bed
    bed.close()


@pytest.fixture
def one_bed() -> Iterator[Bed]:
    """For what has nothing to do with the form of link or readiness."""
    bed = Bed()
    yield bed
    bed.close()
