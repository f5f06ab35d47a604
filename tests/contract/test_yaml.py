"""gvproxy's configuration file, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import dpkt
import pytest

from proto.go_flags import parse
from supervisor.errors import ConfigError
from supervisor.gvproxy.command_line import FLAGS
from supervisor.gvproxy.plan import make
from supervisor.gvproxy.yaml_file import read
from tests.contract.test_flows import attached, dialled, listening, port_of
from tests.contract.test_framing import UUID, VM_MAC, shake_hands
from tests.guests.gvproxy import Gvproxy, Notified
from tests.guests.host import make_host
from tests.guests.namespace import Namespace

pytestmark = pytest.mark.guest

WHOLE = """
listen: ["unix://DIR/api.sock"]
log-level: warning
pid-file: DIR/pid
log-file: DIR/file.log
services: unix://DIR/services.sock
notification: DIR/notified
unknown: {keys: [are, ignored]}
interfaces:
  qemu: unix://DIR/qemu.sock
  vpnkit:
stack:
  mtu: 4000
  subnet: 10.6.0.0/24
  gatewayIP: 10.6.0.254
  deviceIP: 10.6.0.7
  hostIP: 10.6.0.9
  gatewayMacAddress: 52:54:00:12:34:56
  nat: {10.6.0.9: 127.0.0.1, 10.6.0.10: 192.0.2.1}
  gatewayVirtualIPs: [10.6.0.9, 10.6.0.10]
  dhcpStaticLeases: {10.6.0.7: 5A:94:EF:E4:0C:EE}
  vpnKitUUIDMacAddresses: {c3d68012-0208-11ea-9fd7-f2189899ab08: 5a:94:ef:e4:0c:ee}
  dnsSearchDomains: [crc.testing]
  forwards: {":2022": "10.6.0.7:22", "udp:127.0.0.1:53": "10.6.0.7:53"}
  dns:
    - name: crc.testing.
      records:
        - {name: host, ip: 10.6.0.9}
        - {regexp: "^a.*", ip: 10.6.0.7}
      defaultIP: 10.6.0.7
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        yield host


def write(directory: Path, text: str) -> str:
    """The flag that names a file with this text."""
    file = directory / "gvproxy.yaml"
    file.write_text(text.replace("DIR", str(directory)))
    return f"-config={file}"


def test_every_key_does_what_it_says_and_unknown_ones_are_ignored(host: Namespace, tmp_path: Path) -> None:
    """Top: `listen[]`, `log-level`, `stack{}`, `interfaces{}`, `forwards[]`, `pid-file`, `log-file`, `services`,
    `notification` (plain path); stack: `mtu`, `subnet`, `gatewayIP`, `deviceIP`, `hostIP`, `gatewayMacAddress`,
    `dns[]`, `dnsSearchDomains[]`, `forwards{}`, `nat{}`, `gatewayVirtualIPs[]`, `dhcpStaticLeases{}`"""
    notified = Notified(tmp_path / "notified")
    running = Gvproxy(host, tmp_path, write(tmp_path, WHOLE))
    notified.wait(1)
    vm = running.attach()
    offer = dpkt.dhcp.DHCP(vm.dhcp(vm.dhcp_message(dpkt.dhcp.DHCPDISCOVER)).payload)
    assert str(IPv4Address(offer.yiaddr)) == "10.6.0.7"
    told = dict(offer.opts)
    assert (told[26], told[119]) == ((4000).to_bytes(2, "big"), b"\3crc\7testing\0")
    assert running.get("/leases") == {"10.6.0.254": "52:54:00:12:34:56", "10.6.0.7": "5a:94:ef:e4:0c:ee"}
    forwards = running.get("/services/forwarder/all")
    assert [(forward["local"], forward["remote"], forward["protocol"]) for forward in forwards] == [
        ("127.0.0.1:53", "10.6.0.7:53", "udp"),
        (":2022", "10.6.0.7:22", "tcp"),
    ]
    assert running.get("/services/dns/all") == [
        {
            "Name": "crc.testing.",
            "Records": [{"Name": "host", "IP": "10.6.0.9"}, {"Name": "", "IP": "10.6.0.7", "Regexp": "^a.*"}],
            "DefaultIP": "10.6.0.7",
        }
    ]
    (network,) = running.get("/v1/networks")["networks"]
    assert (network["mtu"], network["host_ip"]) == (4000, "10.6.0.9")
    assert running.request("GET", "/cam", sock=tmp_path / "services.sock")[0] == 200
    assert (tmp_path / "pid").read_text() == str(running.process.pid)
    vm.close()
    assert running.ended() == 0
    notified.close()
    assert running.log_text() == ""
    log = (tmp_path / "file.log").read_text()
    assert "level=info" not in log
    assert "gvproxy exiting: cannot receive packets from" in log


def test_nat_and_vpnkits_macs_are_the_files(host: Namespace, tmp_path: Path) -> None:
    """`nat{ip:ip}`, `gatewayVirtualIPs[]`; `interfaces{vpnkit}`, `vpnKitUUIDMacAddresses{uuid:mac}`: with `-config` the
    UUID c3d68012-0208-11ea-9fd7-f2189899ab08 has no MAC of its own"""
    other = UUID[:-1] + b"9"
    text = f"""
interfaces: {{vpnkit: "unix://DIR/vpnkit"}}
stack:
  nat: {{192.168.127.77: 127.0.0.1}}
  gatewayVirtualIPs: [192.168.127.77]
  vpnKitUUIDMacAddresses: {{{other.decode()}: 52:54:00:12:34:56}}
"""
    with Gvproxy(host, tmp_path, write(tmp_path, text), "-listen=unix://DIR/api.sock") as running:
        macs = []
        for uuid in (other, UUID):
            _, vif, link = shake_hands(running, uuid=uuid)
            with link:
                macs.append(vif[5:11])
        assert macs[0] == bytes.fromhex("525400123456")
        assert macs[1] != VM_MAC
        with attached(running, host) as guest, listening(host) as server:
            with dialled(guest.namespace, "192.168.127.77", port_of(server)):
                server.accept()[0].close()
            with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
                dialled(guest.namespace, "192.168.127.254", port_of(server))


def test_anchors_and_merge_keys_are_yamls(tmp_path: Path) -> None:
    """YAML, as Go's yaml.v3 reads it; numbers, MACs and booleans as their keys have them"""
    write(
        tmp_path,
        """
common: &common {mtu: 4000, gatewayMacAddress: 52:54:00:12:34:56}
forwards: [&first {socket: /a, dest: /b, user: core, identity: /id}, {<<: *first, socket: /c}]
stack: {<<: *common, debug: true, hostIP: ~}
""",
    )
    file = read(tmp_path / "gvproxy.yaml")
    assert (file.stack.mtu, file.stack.gateway_mac, file.stack.debug) == (4000, "52:54:00:12:34:56", True)
    assert file.stack.host_ip == ""
    assert [(row.socket, row.dest) for row in file.forwards] == [("/a", "/b"), ("/c", "/b")]


def test_with_a_file_the_defaults_of_the_command_line_are_not_set_up(host: Namespace, tmp_path: Path) -> None:
    """Only without `-config`: DNS zones, search domains, forward 127.0.0.1:sshPort, static lease, UUID. With `-config`
    those are all empty (`/services/dns/all` returns `null`); `-ssh-port` is ignored (warning)"""
    flags = (write(tmp_path, "{}"), "-listen=unix://DIR/api.sock", "-ssh-port=2345")
    with Gvproxy(host, tmp_path, *flags) as running:
        assert running.request("GET", "/services/dns/all") == (200, "null\n")
        assert running.request("GET", "/services/forwarder/all") == (200, "[]\n")
        assert running.get("/leases") == {"192.168.127.1": "5a:94:ef:e4:0c:dd"}
        (network,) = running.get("/v1/networks")["networks"]
        assert (network["subnet"], network["mtu"]) == ("192.168.127.0/24", 1500)
        assert 'level=warning msg="-ssh-port is ignored with -config' in running.log_text()


def test_the_command_line_goes_first_but_for_the_addresses(host: Namespace, tmp_path: Path) -> None:
    """CLI overrides YAML for debug, log-file, sockets, pid-file, listen, services, notification, mtu (if != 0); YAML
    overrides CLI for subnet and the three IPs. CLI forward-* entries are appended to YAML `forwards`."""
    (tmp_path / "id").touch()
    text = """
listen: ["unix://DIR/other.sock"]
pid-file: DIR/other.pid
stack: {mtu: 2000, subnet: 10.7.0.0/24, gatewayIP: 10.7.0.5}
forwards: [{socket: DIR/one, dest: /one, user: core, identity: DIR/id}]
"""
    flags = (
        *(write(tmp_path, text), "-listen=unix://DIR/api.sock", "-pid-file=DIR/pid", "-mtu=3000"),
        *("-subnet=10.8.0.0/24", "-gatewayIP=10.8.0.1"),
        *("-forward-sock=DIR/two", "-forward-dest=/two", "-forward-user=core", "-forward-identity=DIR/id"),
    )
    with Gvproxy(host, tmp_path, *flags) as running:
        (network,) = running.get("/v1/networks")["networks"]
        assert (network["subnet"], network["gateway_ip"], network["mtu"]) == ("10.7.0.0/24", "10.7.0.5", 3000)
        assert [forward["local"] for forward in running.get("/services/forwarder/all")] == [
            f"{tmp_path}/one",
            f"{tmp_path}/two",
        ]
        assert (tmp_path / "pid").exists()
        assert not (tmp_path / "other.sock").exists()
        assert not (tmp_path / "other.pid").exists()


def test_a_bad_log_level_only_warns(host: Namespace, tmp_path: Path) -> None:
    """Bad log level only warns and falls back to info."""
    with Gvproxy(host, tmp_path, write(tmp_path, "log-level: loud")) as running:
        assert "not a valid log level: loud" in running.log_text()
        assert "level=info" in running.log_text()


@pytest.mark.parametrize("text", ["stack: {mtu: many}", "listen: {a: b}", "a: [", "just text"])
def test_a_file_that_is_none_is_fatal(tmp_path: Path, text: str) -> None:
    """`failed to read config file: ...`"""
    write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"^failed to read config file: "):
        read(tmp_path / "gvproxy.yaml")


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("stack: {gatewayVirtualIPs: [192.168.127.77]}", "stack.gatewayVirtualIPs: 192.168.127.77 leads nowhere"),
        ("stack: {gatewayMacAddress: x}", "gateway-mac: expected a unicast MAC"),
        ("stack: {dhcpStaticLeases: {192.168.127.1: 5a:94:ef:e4:0c:ee}}", "expected a VM's address"),
        ("stack: {dns: [{name: a., records: [{regexp: '(', ip: 1.2.3.4}]}]}", "error parsing regexp"),
    ],
)
def test_what_cannot_apply_is_refused_with_a_sentence(tmp_path: Path, text: str, refusal: str) -> None:
    """What cannot apply is refused with a sentence, never ignored in silence."""
    write(tmp_path, text)
    with pytest.raises(ConfigError, match=refusal):
        make(parse(FLAGS, []), read(tmp_path / "gvproxy.yaml")).settings(tmp_path)
