"""The real service, in a namespace that plays the host, for tests of what gvproxy's users may rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guests.host import make_host
from tests.guests.service import Service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with make_host() as host, Service(host) as service:
        yield service
