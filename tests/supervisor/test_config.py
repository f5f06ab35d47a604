from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from proto.messages import Upstream
from supervisor.config import NetworkSpec, Settings, load
from supervisor.endpoints import TcpEndpoint, UnixEndpoint
from supervisor.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "moorage.yaml"
    file.write_text(text)
    return file


def test_nothing_given_is_a_working_configuration(tmp_path: Path) -> None:
    settings = load({}, None)
    assert settings == Settings()
    assert (settings.mtu, settings.subnet) == (1500, IPv4Network("192.168.127.0/24"))
    assert load({}, write(tmp_path, "")) == settings


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'mtu: 4000\nlog-format: json\nlisten: ["qemu=tcp://[::1]:9000"]\n')
    settings = load({"mtu": "9000", "api": ("unix:///a/b",)}, file)
    assert (settings.mtu, settings.log_format) == (9000, "json")
    assert settings.api == (UnixEndpoint("/a/b"),)
    assert settings.listen is not None
    assert (settings.listen[0].kind, settings.listen[0].endpoint) == ("qemu", TcpEndpoint("::1", 9000))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("mtu: big", "mtu: .*valid integer.*got 'big'"),
        ("mtu: 575", "mtu: .*greater than or equal to 576; got 575"),
        ("mtu: 65536", "mtu: .*less than or equal to 65535"),
        ("subnet: 192.168.127.1/24", "subnet: expected an IPv4 network such as .*got '192.168.127.1/24'"),
        ("subnet: 10.0.0.0/30", "subnet: expected .*between /8 and /29"),
        ("subnet: 7", "subnet: expected"),
        ("listen: [unix:///x]", "listen: expected KIND=URL with KIND one of .*qemu.*; got 'unix:///x'"),
        ("listen: [7]", "listen: expected KIND=URL"),
        (
            "listen: [qemu=unix://x]",
            "listen: expected qemu=unix:///PATH or qemu=tcp://HOST:PORT, got 'qemu=unix://x'",
        ),
        ("api: [http://x]", "api: expected unix:///PATH or tcp://HOST:PORT, got 'http://x'"),
        ("api: [7]", "api: expected unix:///PATH"),
        ("vpnkit-uuid-macs: {me: '5a:94:ef:e4:0c:ee'}", "vpnkit-uuid-macs.me: expected a UUID such as .*got 'me'"),
        (
            "vpnkit-uuid-macs: {c3d68012-0208-11ea-9fd7-f2189899ab08: '5b:94:ef:e4:0c:ee'}",
            "vpnkit-uuid-macs.c3d68012-0208-11ea-9fd7-f2189899ab08: expected a unicast MAC .*got '5b:94",
        ),
        ("log-level: loud", "log-level: .*'debug'.*got 'loud'"),
        ("networks: {lab: {mtu: 5}}", "networks.lab.mtu: .*greater than or equal to 576; got 5"),
        ("networks: {lab: {mode: open}}", "networks.lab.mode: .*'shared' or 'isolated'; got 'open'"),
        ("networks: {lab: {subnett: 1}}", "networks.lab.subnett: unknown key; expected one of subnet, gateway-ip"),
        ("networks: {A_b: {}}", "networks.A_b: expected a network's name of lower-case letters.*got 'A_b'"),
        ("dns: {zone: []}", "dns.zone: unknown key; expected one of zones, own-zones"),
        ("dns: {zones: [{nam: x}]}", "dns.zones.name?: .*required"),
        ("dns: {zones: [{name: x., nam: x}]}", "dns.zones.nam: unknown key; expected one of name, records, default-ip"),
        ("dns: {zones: [{name: x., default-ip: x}]}", "dns.zones: invalid IP address: x"),
        ("dns: {zones: [{name: x., records: [{ip: x}]}]}", "dns.zones: invalid IP address: x"),
        ("dns: {upstreams: {x..y: [10.0.0.1]}}", "dns.upstreams.x..y: expected a domain such as corp.example.; got"),
        ("dns: {upstreams: {x: [dns.example]}}", "dns.upstreams.x: expected a DNS server as ADDRESS or ADDRESS:PORT"),
        ("dns: {upstreams: {x: ['10.0.0.1:0']}}", "dns.upstreams.x: expected a DNS server"),
        ("dns: {upstreams: {x: []}}", "dns.upstreams.x: .*at least 1 item"),
        ("dhcp-static-leases: {x: '5a:94:ef:e4:0c:ee'}", "dhcp-static-leases.x: .*IPv4 address"),
        ("dhcp-static-leases: {10.0.0.2: x}", "dhcp-static-leases.10.0.0.2: expected a unicast MAC such as"),
        ("network: [lab]", "network: expected NAME=SUBNET such as lab=10.1.0.0/24; got 'lab'"),
        ("mtuu: 7", "mtuu: unknown key; expected one of listen, api, services"),
        ("- a", "expected keys and values, got list"),
        ("a: [", "expected YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key_and_what_was_expected(tmp_path: Path, text: str, error: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"{file}: {error}"):
        load({}, file)


def test_networks_are_what_they_say_and_otherwise_as_the_default_one(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "mtu: 4000\n"
        "networks: {default: {port-security: false}, lab: {subnet: 10.1.0.0/24, mtu: 9000}, tenants: {mode: isolated}}",
    )
    settings = load({"network": ("lab=10.2.0.0/16", "more=10.3.0.0/16")}, file)
    usual = IPv4Network("192.168.127.0/24")
    assert settings.all_networks() == {
        "default": NetworkSpec(usual, 4000, port_security=False),
        "lab": NetworkSpec(IPv4Network("10.2.0.0/16"), 9000),
        "tenants": NetworkSpec(usual, 4000, "isolated"),
        "more": NetworkSpec(IPv4Network("10.3.0.0/16"), 4000),
    }
    assert list(Settings().all_networks()) == ["default"]


def test_a_listener_must_be_on_a_network_that_there_is(tmp_path: Path) -> None:
    file = write(tmp_path, 'listen: ["qemu=unix:///q,network=lab"]')
    settings = load({"network": ("lab=10.0.0.0/24",)}, file)
    assert settings.listen is not None
    assert settings.listen[0].options.network == "lab"
    with pytest.raises(ConfigError, match=r"listen: qemu=unix:///q: .* NAME one of default; got 'lab'"):
        load({}, file)


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--mtu: .*valid integer.*got 'x'"):
        load({"mtu": "x"}, None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read: No such file"):
        load({}, tmp_path / "nowhere.yaml")


def test_macs_of_uuids_are_known_in_any_case(tmp_path: Path) -> None:
    file = write(tmp_path, "vpnkit-uuid-macs: {C3D68012-0208-11EA-9FD7-F2189899AB08: '5A:94:EF:E4:0C:EE'}")
    assert load({}, file).vpnkit_uuid_macs == {"c3d68012-0208-11ea-9fd7-f2189899ab08": "5a:94:ef:e4:0c:ee"}


def test_frames_behind_two_byte_lengths_are_no_longer_than_those_say() -> None:
    flags = {"mtu": "65522", "listen": ("hyperkit=unix:///h",)}
    with pytest.raises(ConfigError, match="expected a network with an mtu of at most 65521; got default with 65522"):
        load(flags, None)
    load(flags | {"mtu": "65521"}, None)
    load(flags | {"listen": ("qemu=unix:///q",)}, None)


@pytest.mark.parametrize(
    ("leases", "error"),
    [
        ("{10.0.0.2: '5a:94:ef:e4:0c:ee'}", "192.168.127.0/24, the subnet of default; got 10.0.0.2"),
        *((f"{{192.168.127.{last}: '5a:94:ef:e4:0c:ee'}}", f"got 192.168.127.{last}") for last in (0, 1, 254, 255)),
        (
            "{192.168.127.2: '5a:94:ef:e4:0c:ee', 192.168.127.3: '5A:94:ef:e4:0c:ee'}",
            "one address for each MAC on network default",
        ),
    ],
)
def test_static_leases_are_of_addresses_that_a_vm_may_have(tmp_path: Path, leases: str, error: str) -> None:
    with pytest.raises(ConfigError, match=f"dhcp-static-leases: expected .*{error}"):
        load({}, write(tmp_path, f"dhcp-static-leases: {leases}"))


def test_dns_is_for_all_networks_and_static_leases_are_for_one(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
dns: {upstreams: {Corp.example: [10.0.0.1, "10.0.0.2:5353", "2001:db8::1", "[2001:db8::2]:54"], .: [1.1.1.1]}}
dhcp-static-leases: {192.168.127.9: "5A:94:EF:E4:0C:EE"}
networks:
  lab: {dhcp-static-leases: {192.168.127.9: "5a:94:ef:e4:0c:ef"}}
  own: {dns: {search-domains: [a.example]}}
""",
    )
    networks = load({}, file).all_networks()
    servers = (
        *(Upstream("10.0.0.1"), Upstream("10.0.0.2", 5353)),
        *(Upstream("2001:db8::1"), Upstream("2001:db8::2", 54)),
    )
    asked = {"corp.example.": servers, ".": (Upstream("1.1.1.1"),)}
    assert networks["default"].dns.upstreams == networks["lab"].dns.upstreams == asked
    assert (networks["own"].dns.upstreams, networks["own"].dns.search_domains) == ({}, ("a.example.",))
    assert [networks[name].static_leases for name in ("default", "lab", "own")] == [
        {IPv4Address("192.168.127.9"): "5a:94:ef:e4:0c:ee"},
        {IPv4Address("192.168.127.9"): "5a:94:ef:e4:0c:ef"},
        {},
    ]


def test_a_networks_addresses_can_be_chosen_and_its_nat_follows_the_host_address(tmp_path: Path) -> None:
    text = "networks: {lab: {subnet: 10.1.0.0/24, gateway-ip: 10.1.0.254, host-ip: 10.1.0.253}}"
    lab = load({}, write(tmp_path, text)).all_networks()["lab"]
    assert (str(lab.gateway_ip), str(lab.host_ip)) == ("10.1.0.254", "10.1.0.253")
    assert lab.nat == {lab.host_ip: IPv4Address("127.0.0.1")}


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ("gateway-ip: 10.9.0.1", "networks.lab.gateway-ip: expected an address of 10.1.0.0/24; got 10.9.0.1"),
        ("host-ip: 10.1.0.255", "networks.lab.host-ip: expected an address of 10.1.0.0/24; got 10.1.0.255"),
        ("host-ip: 10.1.0.1", "networks.lab.host-ip: expected another address than the gateway's; got 10.1.0.1"),
    ],
)
def test_addresses_that_cannot_be_are_refused(tmp_path: Path, keys: str, error: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({}, write(tmp_path, f"networks: {{lab: {{subnet: 10.1.0.0/24, {keys}}}}}"))
    assert str(refused.value) == error


def test_forwards_notification_and_services_are_settings_too(tmp_path: Path) -> None:
    text = """
forwards: [{local: ":8080", remote: "web:80"}, {local: /run/s, remote: "tcp://web:80", protocol: unix}]
notification: unix:///run/told
services: [tcp://127.0.0.1:1]
forward-dual-stack: true
"""
    settings = load({}, write(tmp_path, text))
    assert (settings.forward_dual_stack, load({}, None).forward_dual_stack) == (True, False)
    assert [(forward.local, forward.protocol) for forward in settings.forwards] == [
        (":8080", "tcp"),
        ("/run/s", "unix"),
    ]
    assert settings.notification == UnixEndpoint("/run/told")
    assert settings.services == (TcpEndpoint("127.0.0.1", 1),)


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        ("false", ()),
        ("true", (range(65536),)),
        ("[8080, 9000-9001]", (range(8080, 8081), range(9000, 9002))),
    ],
)
def test_guests_may_forward_all_ports_or_some_or_none(tmp_path: Path, value: str, ports: tuple[range, ...]) -> None:
    settings = load({}, write(tmp_path, f"networks: {{lab: {{guest-api: {value}}}}}"))
    assert settings.all_networks()["lab"].guest_api == ports
    assert settings.all_networks()["default"].guest_api == ()


@pytest.mark.parametrize("value", ["[]", "80", "[http]", "[9-8]", "[1-70000]", "['-1']"])
def test_ports_that_are_none_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"networks\.lab\.guest-api: expected true, false or a list of ports"):
        load({}, write(tmp_path, f"networks: {{lab: {{guest-api: {value}}}}}"))
