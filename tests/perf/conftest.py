"""A guest for counting, at each MTU that is counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.guests.host import make_host
from tests.guests.namespace import NamespaceGuest
from tests.guests.service import Service
from tests.perf.rig import Rig


@pytest.fixture(scope="module", params=[1500, 65520], ids=lambda mtu: f"mtu {mtu}")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("rig")
    mtu: int = request.param
    with make_host() as host, Service(host, "--mtu", str(mtu)) as service:
        guest = NamespaceGuest(directory, service.unix_url, "5a:94:ef:e4:0f:01", directory / "probe", host)
        with contextlib.closing(guest):
            assert guest.configure().mtu == mtu
            yield Rig(service, guest, mtu)
