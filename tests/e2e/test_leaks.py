"""What is over leaves nothing behind in the worker; ``bench/soak.py`` is the long form."""

from __future__ import annotations

import pytest

from tests.guests.servers import FileServer
from tests.guests.service import Attach, Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

TIME_WAIT = 20.0
"""Seconds after which a finished connection must be forgotten."""


def test_nothing_stays_open_behind_finished_connections(service: Service, attach: Attach, files: FileServer) -> None:
    guest = attach(service)
    guest.configure()
    vm = f"/v1/vms/{service.vm(guest.mac)['id']}"
    before = service.get(vm)["open_files"]
    url = f"http://192.168.127.254:{files.port}/data?size=1000"
    guest.sh(f"for i in $(seq 20); do busybox wget -q -O /dev/null '{url}'; done")
    assert service.get(vm)["counters"]["tcp.opened_by_guest"] == 20
    wait_for(lambda: service.get(vm)["counters"].get("tcp.flows", 0) == 0, TIME_WAIT, "the flows to end")
    wait_for(lambda: service.get(vm)["open_files"] <= before, 2, "their descriptors to be closed")
