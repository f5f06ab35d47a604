"""The real service, in a namespace that plays the host, for tests of what gvproxy's users may rely on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.guest import Guest, build_probe
from tests.guests.host import make_host
from tests.guests.namespace import NamespaceGuest
from tests.guests.service import Service

MAC = "5a:94:ef:e4:0c:ee"
"""Of the VM in gvproxy's transcripts."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with make_host() as host, Service(host) as service:
        yield service


@pytest.fixture(scope="module")
def guest(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The VM of the transcripts, attached and configured."""
    directory: Path = tmp_path_factory.mktemp("guest")
    guest = NamespaceGuest(directory, service.unix_url, MAC, build_probe(directory), service.host)
    with contextlib.closing(guest):
        guest.configure()
        yield guest
