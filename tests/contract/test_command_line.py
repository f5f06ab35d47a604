"""gvproxy's command line, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c)."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.go_flags import parse
from supervisor.errors import ConfigError
from supervisor.gvproxy.command_line import FLAGS
from supervisor.gvproxy.plan import make
from supervisor.gvproxy.yaml_file import read
from tests.contract.test_framing import ANSWER, QUESTION
from tests.guests.gvproxy import READY, Gvproxy
from tests.guests.host import make_host
from tests.guests.namespace import Namespace
from tests.guests.service import MOORAGE
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

NO_SSH = ("-ssh-port", "-1")


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        yield host


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """One that ends by itself."""
    return subprocess.run([MOORAGE, "gvproxy", *flags], capture_output=True, text=True, timeout=30, check=False)


def exiting(*flags: str) -> str:
    """Why one that had started ended, and nothing but its name and that said."""
    ended = run(*flags)
    assert (ended.returncode, ended.stdout) == (0, "")
    began, told = ended.stderr.splitlines()
    assert re.fullmatch(r'time="[^"]*" level=info msg="gvproxy version v\S+ \(Moorage\)"', began)
    match = re.fullmatch(r'time="[^"]*" level=error msg="gvproxy exiting: (.*)"', told)
    assert match, told
    return match[1]


def fatal(*flags: str) -> str:
    """What it says of a configuration that cannot be; how it says it is the business of one test of its own."""
    values = parse(FLAGS, flags)
    try:
        plan = make(values, read(Path(values["config"])) if values["config"] else None)
        plan.settings(Path("/tmp"))
    except ConfigError as refused:
        return str(refused)
    raise AssertionError("nothing is wrong with it")


# --- flags


def test_version_goes_to_standard_output_with_status_0() -> None:
    """`-version`: stdout `gvproxy version vX`, exit 0."""
    ended = run("-version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"gvproxy version v\S+ \(Moorage\)\n", ended.stdout)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_usage_on_standard_error_with_status_0(flag: str) -> None:
    """`-h`: usage on stderr, exit 0."""
    ended = run(flag)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.startswith("Usage of gvproxy:\n")
    for name in (
        *("config", "listen", "services", "listen-vpnkit", "listen-qemu", "listen-bess", "listen-vfkit", "version"),
        *("listen-stdio", "debug", "mtu", "ssh-port", "subnet", "gatewayIP", "deviceIP", "hostIP", "notification"),
        *("forward-sock", "forward-dest", "forward-user", "forward-identity", "pid-file", "log-file", "pcap"),
        "ec2-metadata-access",
    ):
        assert f"\n  -{name}" in ended.stderr


def test_a_flag_that_is_none_is_gos_message_the_usage_and_status_2() -> None:
    """2 for bad flags"""
    ended = run("-debug", "--nope=1", "-version")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("flag provided but not defined: -nope\nUsage of gvproxy:\n")


def test_the_first_word_that_is_no_flag_silently_ends_parsing() -> None:
    """the first non-flag word silently ends parsing"""
    assert run("-debug", "--version", "true", "-nope").stdout.startswith("gvproxy version ")


# --- checks before start


def test_a_configuration_that_cannot_be_is_one_line_of_level_fatal_with_status_1(tmp_path: Path) -> None:
    """Checks before start (fatal, exit 1, message after `level=fatal msg=`)"""
    (tmp_path / "s").touch()
    ended = run("-listen-qemu", f"unix://{tmp_path}/s")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(rf'time="[^"]*" level=fatal msg="\\"{tmp_path}/s\\" already exists"\n', ended.stderr)


@pytest.mark.parametrize(
    ("flag", "url"),
    [
        ("-listen-qemu", "unix://PATH"),
        ("-listen-bess", "unixpacket://PATH"),
        ("-listen-vfkit", "unixgram://PATH"),
    ],
)
def test_a_path_that_exists_is_fatal(flag: str, url: str, tmp_path: Path) -> None:
    """qemu unix path / bess / vfkit path exists => `"PATH" already exists`"""
    (tmp_path / "s").touch()
    assert fatal(flag, url.replace("PATH", str(tmp_path / "s"))) == f'"{tmp_path}/s" already exists'


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("-listen-bess", "unix:///tmp/none"), "bess listen address must be unixpacket:// address"),
        (("-listen-vfkit", "unix:///tmp/none"), "vfkit listen address must be unixgram:// address"),
        (("-notification", "/tmp/none"), "notification listen address must be unix:// address"),
        (
            ("-listen-qemu", "unix:///tmp/none", "-listen-vpnkit", "unix:///tmp/no"),
            "cannot use qemu and vpnkit protocol at the same time",
        ),
        (
            ("-listen-bess", "unixpacket:///tmp/none", "-listen-vpnkit", "unix:///tmp/no"),
            "cannot use bess and vpnkit protocol at the same time",
        ),
        (
            ("-listen-qemu", "unix:///tmp/none", "-listen-bess", "unixpacket:///tmp/no"),
            "cannot use qemu and bess protocol at the same time",
        ),
        (("-ssh-port", "80"), "ssh-port value must be between 1024 and 65535"),
        (("-ssh-port", "65536"), "ssh-port value must be between 1024 and 65535"),
        (("-ssh-port", "-2"), "ssh-port value must be between 1024 and 65535"),
        (("-subnet", "junk"), "failed to parse subnet: invalid CIDR address: junk"),
        (("-subnet", "fd00::/64"), "failed to parse subnet: invalid CIDR address: fd00::/64"),
        (("-gatewayIP", "x"), "failed to validate configuration IPs: invalid IP address: x"),
        (
            ("-hostIP", "10.0.0.1"),
            "failed to validate configuration IPs: IP (10.0.0.1) not in subnet (192.168.127.0/24)",
        ),
        (
            ("-deviceIP", "192.168.127.0"),
            "failed to validate configuration IPs: IP must not be address of subnet: 192.168.127.0",
        ),
        (
            ("-deviceIP", "192.168.127.255"),
            "failed to validate configuration IPs: IP must not be broadcast address: 192.168.127.255",
        ),
        (
            ("-deviceIP", "192.168.127.1"),
            "failed to validate configuration IPs: IP addresses need to be distinct",
        ),
        (
            ("-forward-sock", "/a", "-forward-dest", "/b", "-forward-user", "u", "-forward-identity", "/none"),
            'identity file "/none" can\'t be loaded: stat /none: no such file or directory',
        ),
        (("-config", "/none"), "failed to read config file: open /none: no such file or directory"),
    ],
)
def test_a_configuration_that_cannot_be_is_fatal(flags: tuple[str, ...], text: str) -> None:
    """Checks before start (fatal, exit 1, message after `level=fatal msg=`)"""
    assert fatal(*flags) == text


def test_a_subnet_without_room_is_fatal() -> None:
    """`... subnet too small` (prefix longer than /29)"""
    assert fatal("-subnet", "10.0.0.0/30").endswith("subnet too small")


def test_forwards_over_ssh_need_all_four_flags_equally_often() -> None:
    """forward-* count error"""
    assert fatal("-forward-sock", "/a", "-forward-dest", "/b").startswith("-forward-sock, -forward-dest,")


def test_a_log_file_that_cannot_be_opened_is_fatal(tmp_path: Path) -> None:
    """`unable to open log file X`"""
    ended = run("-log-file", f"{tmp_path}/no/log")
    assert ended.returncode == 1
    assert f'level=fatal msg="unable to open log file {tmp_path}/no/log' in ended.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ("-forward-sock", "npipe:////./pipe/x", *("-forward-dest", "/b", "-forward-user", "u")),
            "named pipes are not",
        ),
        (("-mtu", "100"), "mtu 100 is not possible: expected 576 to 65535, or 0 for 1500"),
        (("-mtu", "70000"), "mtu 70000 is not possible"),
        (("-listen-qemu", "vsock://:1024"), "-listen-qemu: expected unix:///PATH or tcp://HOST:PORT"),
        (("-listen-vpnkit", "tcp://:1024"), "-listen-vpnkit: expected unix:///PATH"),
        (("-listen-qemu", "tcp://[::"), "invalid value for listen-qemu: tcp://[::: "),
    ],
)
def test_what_cannot_apply_is_refused_with_a_sentence(flags: tuple[str, ...], text: str) -> None:
    """What cannot apply is refused with a sentence, never ignored in silence."""
    more = ("-forward-identity", "/dev/null") if "-forward-user" in flags else ()
    assert text in fatal(*flags, *more)


# --- what the flags do


def test_without_flags_it_has_gvproxys_defaults_and_listens_to_nothing_else(host: Namespace, tmp_path: Path) -> None:
    """`-ssh-port` 2222: forwards 127.0.0.1:N to deviceIP:22; `-mtu` 0 => 1500; 192.168.127.0/24 / first / second / last
    usable. No API but where `-listen` says."""
    with Gvproxy(host, tmp_path, "-listen", "unix://DIR/api.sock") as running:
        assert running.get("/services/forwarder/all") == [
            {"local": "127.0.0.1:2222", "remote": "192.168.127.2:22", "protocol": "tcp"}
        ]
        (network,) = running.get("/v1/networks")["networks"]
        assert (network["subnet"], network["mtu"]) == ("192.168.127.0/24", 1500)
        assert (network["gateway_ip"], network["host_ip"]) == ("192.168.127.1", "192.168.127.254")
        listening = host.run("ss", "-Hltun").stdout.splitlines()
        assert [line.split()[4] for line in listening] == ["127.0.0.1:2222"]


def test_the_addresses_are_the_flags(host: Namespace, tmp_path: Path) -> None:
    """`-subnet` / `-gatewayIP` / `-deviceIP` / `-hostIP`; `-mtu N`; `-ssh-port N`"""
    addresses = ("-subnet=10.5.0.0/16", "-gatewayIP=10.5.1.1", "-deviceIP=10.5.1.2", "-hostIP=10.5.1.3")
    sockets = ("-listen", "unix://DIR/api.sock", "-listen-qemu", "unix://DIR/qemu.sock")
    with Gvproxy(host, tmp_path, *addresses, *sockets, "-mtu=4000", "--ssh-port=2022") as running:
        vm = running.attach()
        assert vm.discover() == "10.5.1.2"
        (network,) = running.get("/v1/networks")["networks"]
        assert (network["subnet"], network["mtu"]) == ("10.5.0.0/16", 4000)
        assert (network["gateway_ip"], network["host_ip"]) == ("10.5.1.1", "10.5.1.3")
        (forward,) = running.get("/services/forwarder/all")
        assert (forward["local"], forward["remote"]) == ("127.0.0.1:2022", "10.5.1.2:22")
        (zone, _) = running.get("/services/dns/all")
        assert [record["IP"] for record in zone["Records"]] == ["10.5.1.1", "10.5.1.3"]
        vm.close()
        assert running.ended() == 0


def test_listen_serves_the_api_with_connect_and_services_without(host: Namespace, tmp_path: Path) -> None:
    """`-listen URL` (repeat): control API incl. `/connect`; `-services URL`: same API without `/connect` and pprof"""
    flags = ("-listen=unix://DIR/api.sock", "-listen=tcp://:7777", "-services", "unix://DIR/services.sock")
    with Gvproxy(host, tmp_path, *flags, *NO_SSH) as running:
        services = tmp_path / "services.sock"
        for sock in (running.api, services):
            assert running.request("GET", "/services/forwarder/all", sock=sock) == (200, "[]\n")
        assert running.request("POST", "/connect", sock=services) == (404, "404 page not found\n")
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(running.api))
            link.sendall(b"POST /connect HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n")
            link.settimeout(1)
            with pytest.raises(TimeoutError):  # nothing is answered
                link.recv(1)
        fetched = host.run("curl", "-sS", "--max-time", "10", "http://127.0.0.1:7777/services/forwarder/all")
        assert fetched.stdout == "[]\n", fetched.stderr
        log = running.log_text()
        assert "enabling services API. Listening unix://" in log
        assert log.index(READY) < log.index('msg="listening unix://') < log.index("enabling services API")


@pytest.mark.parametrize("url", ["tcp://:7777", "tcp://0.0.0.0:7777"])
def test_listen_without_an_address_takes_ipv4_and_ipv6(host: Namespace, tmp_path: Path, url: str) -> None:
    """`-listen tcp://host:port`: as Go's net.Listen, on all addresses where none is given or 0.0.0.0"""
    with Gvproxy(host, tmp_path, "-listen", url, *NO_SSH):
        for address in ("127.0.0.1", "[::1]"):
            fetched = host.run("curl", "-sS", "--max-time", "10", f"http://{address}:7777/services/forwarder/all")
            assert fetched.stdout == "[]\n", fetched.stderr


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o007, 0o770)])
def test_sockets_have_the_mode_that_the_umask_leaves_and_go_at_the_end(
    host: Namespace, tmp_path: Path, mask: int, mode: int
) -> None:
    """`unix`: mode 0777&~umask; unlinked on exit. Those that VMs attach to likewise, also the one that takes vfkit's
    place when a VM has it."""
    flags = (
        *("-listen=unix://DIR/api.sock", "-services=unix://DIR/services", "-listen-qemu=unix://DIR/qemu.sock"),
        *("-listen-vfkit=unixgram://DIR/vfkit", *NO_SSH),
    )
    before = os.umask(mask)
    try:
        running = Gvproxy(host, tmp_path, *flags)
    finally:
        os.umask(before)
    names = ("api.sock", "services", "qemu.sock", "vfkit")

    def modes() -> set[int]:
        return {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names}

    with running:
        assert modes() == {mode}
        first = (tmp_path / "vfkit").stat().st_ino
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as card:
            card.bind(str(tmp_path / "card"))
            card.sendto(b"VFKT", str(tmp_path / "vfkit"))
            wait_for(lambda: (tmp_path / "vfkit").stat().st_ino != first, 10, "the next socket")
        assert modes() == {mode}
    assert not [name for name in names if (tmp_path / name).exists()]


@pytest.mark.parametrize(
    ("flag", "trouble"), [("-listen", "cannot listen"), ("-services", "cannot listen"), ("-listen-vpnkit", "vpnkit")]
)
def test_a_stale_socket_is_not_removed(tmp_path: Path, flag: str, trouble: str) -> None:
    """`unix` does not remove a stale file (bind error; exit status 0, as of every run-time end)"""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    refused = f"listen unix {tmp_path}/s: bind: address already in use"
    trouble = f"{trouble} listen error" if trouble == "vpnkit" else trouble
    assert exiting(flag, f"unix://{tmp_path}/s", *NO_SSH) == f"{trouble}: {refused}"
    assert (tmp_path / "s").is_socket()


def test_an_address_that_cannot_be_listened_on_is_gos_sentence() -> None:
    """Exit status 0 for listen failure; `listen ADDR: bind: address already in use` is what scripts look for"""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        local = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = f"listen tcp {local}: bind: address already in use"
        assert exiting("-listen", f"tcp://{local}", *NO_SSH) == f"cannot listen: {refused}"
        assert exiting("-listen-qemu", f"tcp://{local}", *NO_SSH) == f"qemu listen error: {refused}"
    refused = "listen unixgram /none/vfkit: bind: no such file or directory"
    assert exiting("-listen-vfkit", "unixgram:///none/vfkit", *NO_SSH) == f"vfkit listen error: {refused}"


def test_a_url_is_read_as_go_does(host: Namespace, tmp_path: Path) -> None:
    """Listen URLs: `unix:///path`, whose escapes are Go's `url.Parse`'s"""
    with Gvproxy(host, tmp_path, "-listen=UNIX://DIR/an%20api.sock", *NO_SSH) as running:
        assert running.request("GET", "/services/forwarder/all", sock=tmp_path / "an api.sock") == (200, "[]\n")
    (tmp_path / "a card").touch()
    assert fatal("-listen-vfkit", f"unixgram://{tmp_path}/a%20card") == f'"{tmp_path}/a card" already exists'


def test_unixpacket_serves_the_api_in_packets(host: Namespace, tmp_path: Path) -> None:
    """Listen URLs (Linux): `unixpacket:///path`, with `/connect`; for `-services` without it; unlinked on exit"""
    api, services = tmp_path / "packets", tmp_path / "services"
    flags = (f"-listen=unixpacket://{api}", f"-services=unixpacket://{services}", *NO_SSH)
    with Gvproxy(host, tmp_path, *flags) as running:
        for sock in (api, services):
            status, text = running.request("GET", "/stats", sock=sock, kind=socket.SOCK_SEQPACKET)
            assert (status, json.loads(text)["BytesSent"]) == (200, 0)
        zone = {"Name": "big.", "Records": [{"Name": f"host-{number}", "IP": "1.2.3.4"} for number in range(1000)]}
        asked = ("POST", "/services/dns/add", zone, api, socket.SOCK_SEQPACKET)
        assert running.request(*asked) == (200, "")
        connect = ("POST", "/connect", None, services, socket.SOCK_SEQPACKET)
        assert running.request(*connect) == (404, "404 page not found\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(15)
            link.connect(str(api))
            link.send(b"POST /connect HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n")
            link.send(len(QUESTION).to_bytes(2, "little"))
            link.send(QUESTION)
            answer = b""
            while len(answer) < 2 + len(ANSWER):
                answer += link.recv(4096)
            assert answer[2:] == ANSWER
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as tunnel:
            tunnel.settimeout(15)
            tunnel.connect(str(api))
            tunnel.send(b"POST /tunnel?ip=192.168.127.77&port=22 HTTP/1.1\r\nHost: \r\n\r\n")
            assert tunnel.recv(4096) == b"OK"
    assert not api.exists()
    assert not services.exists()


@pytest.mark.parametrize("flag", ["-listen", "-services"])
def test_vsock_is_listened_on_where_there_is_one_and_a_path_behind_it_ignored(
    host: Namespace, tmp_path: Path, flag: str
) -> None:
    """Listen URLs (Linux): `vsock://[cid]:port[/ignored]`; better: where there is none, the remedy is told"""
    try:
        any_port = socket.socket(socket.AF_VSOCK)
    except OSError:
        ended = run(flag, "vsock://:1024/ignored", *NO_SSH)
        assert ended.returncode == 0
        assert "this system has no AF_VSOCK; on Linux `modprobe vhost_vsock` brings it" in ended.stderr
        return
    with any_port:
        any_port.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        _, port = any_port.getsockname()
    with (
        Gvproxy(host, tmp_path, flag, f"vsock://:{port}/ignored", *NO_SSH) as running,
        socket.socket(socket.AF_VSOCK) as second,
    ):
        assert f"istening vsock://:{port}/ignored" in running.log_text()
        with pytest.raises(OSError, match="in use"):
            second.bind((socket.VMADDR_CID_ANY, port))


@pytest.mark.parametrize(
    ("flag", "trouble"),
    [
        ("-listen", "cannot listen"),
        ("-services", "cannot listen"),
        ("-listen-qemu", "qemu listen error"),
        ("-listen-vpnkit", "vpnkit listen error"),
    ],
)
def test_a_listen_url_of_another_scheme_is_unexpected(flag: str, trouble: str) -> None:
    """other => "unexpected scheme" (exit status 0, as of every run-time end)"""
    assert exiting(flag, "http://127.0.0.1:1") == f"{trouble}: unexpected scheme"


@pytest.mark.parametrize(
    "url", ["tcp://127.0.0.1", "tcp://[::", "unix://here", "vsock://a:b", "unix:///a%00b", "unix:///" + "x" * 200]
)
def test_a_listen_url_that_is_none_ends_it_with_a_sentence(url: str) -> None:
    """Exit status 0 for listen failure; better: it says what was expected"""
    plan = make(parse(FLAGS, ["-listen", url]), None)
    assert plan.failure.startswith("cannot listen: ")
    assert "expected" in plan.failure or "Invalid IPv6" in plan.failure
    plan.settings(Path("/tmp"))


def test_a_negative_mtu_ends_it_with_status_0() -> None:
    """negative => "mtu is out of range"; exit status 0 for bad mtu"""
    assert exiting("-mtu", "-1") == "mtu is out of range"


def test_a_configuration_that_cannot_be_goes_before_what_ends_a_run() -> None:
    """Order: parse => log `gvproxy version ...` => pid file => stack"""
    assert "ssh-port" in fatal("-mtu", "-1", "-listen", "http://x", "-ssh-port", "80")


@pytest.mark.parametrize("how", ["-debug", "stack: {debug: true}", "log-level: debug"])
def test_debug_says_more_and_what_there_is_instead_of_dumps_and_pprof(
    host: Namespace, tmp_path: Path, how: str
) -> None:
    """`-debug`: level debug; packet dumps (at info); pprof; 5 s byte log. What cannot apply is refused with a sentence,
    never ignored in silence."""
    (tmp_path / "gvproxy.yaml").write_text(how)
    flags = (how,) if how.startswith("-") else ("-config", "DIR/gvproxy.yaml")
    with Gvproxy(host, tmp_path, *flags, "-listen=unix://DIR/api.sock") as running:
        assert running.request("GET", "/debug/pprof/") == (404, "404 page not found\n")
        log = running.log_text()
    assert "level=debug" in log
    assert "-debug: packets are not dumped here, -pcap FILE and `moorage capture` show them; " in log
    assert "there is no /debug/pprof: see /stats, /v1/vms and /metrics" in log


def test_a_socket_leads_into_the_vm_over_ssh(host: Namespace, tmp_path: Path) -> None:
    """`-forward-sock`, `-forward-dest`, `-forward-user`, `-forward-identity`: host unix socket => guest unix socket
    over SSH; local socket created first, mode 0600"""
    (tmp_path / "id").touch()
    flags = ("-forward-sock=DIR/s", "-forward-dest=/run/podman.sock", "-forward-user=core", "-forward-identity=DIR/id")
    with Gvproxy(host, tmp_path, *flags, *NO_SSH, "-listen=unix://DIR/api.sock") as running:
        (forward,) = running.get("/services/forwarder/all")
        assert forward == {
            "local": f"{tmp_path}/s",
            "remote": f"ssh-tunnel://core@192.168.127.2:22/run/podman.sock?key={tmp_path}/id",
            "protocol": "unix",
        }
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "s").exists()
