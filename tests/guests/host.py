"""A network namespace that plays the host: loopback, an address, no way out.

What happens on a real host by its own nature can be made here: a service on 127.0.0.1:53, a destination without a
route, ping sockets allowed or not.
"""

from __future__ import annotations

from tests.guests.namespace import Namespace

ADDRESS = "10.77.0.1"
"""The host's address besides 127.0.0.1."""
NO_NETWORK = "198.51.100.1"
"""No route leads there: ENETUNREACH."""
NO_HOST = "203.0.113.1"
"""A route says it cannot be reached: EHOSTUNREACH."""
NOBODY = "1 0"
EVERYBODY = "0 2147483647"
RESOLV_CONF = "nameserver 127.0.0.1\nsearch lab.test example.test\n"


def make_host(ping_group_range: str = EVERYBODY) -> Namespace:
    """`ping_group_range`: the groups that may open ping sockets, as in net.ipv4.ping_group_range."""
    host = Namespace("host")
    host.ip("address", "add", f"{ADDRESS}/32", "dev", "lo")
    host.ip("route", "add", "unreachable", "203.0.113.0/24")
    host.run("sh", "-c", f"echo '{ping_group_range}' >/proc/sys/net/ipv4/ping_group_range")
    host.resolv_conf.write_text(RESOLV_CONF)
    return host
