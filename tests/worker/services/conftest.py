"""A network and the frames of a guest on it."""

import pytest

from proto.messages import Network, Upstream, Zone, ZoneRecord


@pytest.fixture
def network() -> Network:
    return Network(
        name="default",
        subnet="192.168.127.0/24",
        gateway_ip="192.168.127.1",
        gateway_mac="5a:94:ef:e4:0c:dd",
        host_ip="192.168.127.254",
        mtu=1500,
        lease_time=3600,
        zones=(
            Zone(
                "containers.internal.",
                (ZoneRecord("192.168.127.1", "gateway"), ZoneRecord("192.168.127.254", "host")),
            ),
        ),
        search_domains=("containers.internal",),
        upstreams=(Upstream("127.0.0.1", 5353),),
        nat={"192.168.127.254": "127.0.0.1"},
    )
