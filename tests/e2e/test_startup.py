"""Starting, refusing to start, and the states a host may be in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guests.host import ADDRESS, NOBODY, make_host
from tests.guests.service import Attach, Service
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest


def test_ready_service_says_how_to_attach_and_where_its_api_is(service: Service) -> None:
    said = service.log_text()
    assert "-netdev stream,id=net0," in said
    assert f"addr.type=unix,addr.path={service.link_path} " in said
    assert f"API: unix://{service.api_path}" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--mtu", "12"], "--mtu"),
        (["--subnet", "192.168.127.0/33"], "--subnet"),
        (["--listen", "qemu=carrier-pigeon://x"], "--listen"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_bad_flag_is_named_and_ends_with_status_2(service: Service, arguments: list[str], complaint: str) -> None:
    done = service.host.run(*service.command(), *arguments)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_configuration_names_file_and_key(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "moorage.yaml"
    file.write_text("mut: 1500\n")
    done = service.host.run(*service.command(), "--config", str(file))
    assert done.returncode == 2, done.stderr
    assert str(file) in done.stderr
    assert "mut" in done.stderr


def test_an_address_in_use_is_named_and_ends_with_status_1(service: Service, tmp_path: Path) -> None:
    listen = f"qemu=tcp://127.0.0.1:{service.tcp_port}"
    second = Service(service.host)
    try:
        done = service.host.run(*second.command()[:6], "--listen", listen)
        assert done.returncode == 1, done.stderr
        assert f"127.0.0.1:{service.tcp_port}" in done.stderr
        assert "Traceback" not in done.stderr
        assert not second.sockets()
    finally:
        second.close()


def test_a_host_without_ping_sockets_or_resolver_still_serves_guests(attach: Attach) -> None:
    with make_host(NOBODY) as host:
        host.resolv_conf.write_text("")
        with Service(host) as service:
            guest = attach(service)
            guest.configure()
            assert guest.attempt(f"busybox ping -c 2 -W 1 {ADDRESS}").status == 1
            guest.sh("busybox ping -c 1 -W 2 192.168.127.1")
            guest.sh("busybox nslookup -type=a host.containers.internal")
            wait_for(lambda: "ping_group_range" in service.log_text(), 5, "the log line")
            assert service.log_text().count("ping_group_range") == 1


def test_a_change_of_the_hosts_resolver_is_followed(attach: Attach) -> None:
    with make_host() as host:
        host.resolv_conf.write_text("search before.test\n")
        with Service(host) as service:
            guest = attach(service)
            assert guest.configure().search == ("before.test",)
            host.resolv_conf.write_text("search after.test\n")
            wait_for(lambda: guest.configure().search == ("after.test",), 10, "the new search domain")
