"""gvproxy's life, line by line of what it does (containers/gvisor-tap-vsock 3405fe5c), and what is better here."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.guests.bare import BareVm
from tests.guests.gvproxy import MAC, READY, Gvproxy, Notified
from tests.guests.host import make_host
from tests.guests.namespace import Namespace
from tests.guests.service import MOORAGE
from tests.guests.waiting import wait_for

pytestmark = pytest.mark.guest

NO_SSH = ("-ssh-port", "-1")
OTHER = "5a:94:ef:e4:0c:ef"
SOCKETS = ("-listen", "unix://DIR/api.sock", "-listen-qemu", "unix://DIR/qemu.sock")


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with make_host() as host:
        yield host


def is_alive(process: psutil.Process) -> bool:
    """Ended processes may wait for a parent to take note of them."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def last_line(running: Gvproxy) -> str:
    return running.log_text().splitlines()[-1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_status_0_and_nothing_is_left(host: Namespace, tmp_path: Path, signum: int) -> None:
    """Exit status 0 for SIGTERM/SIGINT; last log line `gvproxy exiting: signal caught`; pid file: removed on normal
    exit. Better: SIGHUP is no other."""
    with Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH, "-pid-file", "DIR/pid") as running:
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert running.stop(signum) == 0
    assert last_line(running).endswith('msg="gvproxy exiting: signal caught"')
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
    assert not [child for child in children if child.is_running()]


def test_a_kill_ends_all_of_it(host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`podman machine stop` kills it (SIGKILL): the VM's link, the forwarded ports and every process go, as there. Its
    own directory, too; of what the flags name the files stay."""
    with tempfile.TemporaryDirectory(prefix="m-") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        with (
            Gvproxy(host, tmp_path, *SOCKETS, "-ssh-port", "2300", "-pid-file", "DIR/pid") as running,
            running.attach() as vm,
        ):
            children = psutil.Process(running.process.pid).children(recursive=True)
            assert running.stop(signal.SIGKILL) == -signal.SIGKILL
            assert all(vm.frames())  # until the link ends
            wait_for(lambda: not any(map(is_alive, children)), 10.0, "the end of its processes")
        assert not list(Path(temporary).iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["api.sock", "log", "pid", "qemu.sock"]
    for name in ("api.sock", "qemu.sock"):
        (tmp_path / name).unlink()
    with Gvproxy(host, tmp_path, *SOCKETS, "-ssh-port", "2300", "-pid-file", "DIR/pid") as again:
        assert again.get("/services/forwarder/all")[0]["local"] == "127.0.0.1:2300"


def test_a_long_name_of_the_temporary_directory_is_in_nobodys_way(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its own sockets where their names have room."""
    (tmp_path / ("long" * 20)).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    with Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH) as running, running.attach() as vm:
        assert vm.discover() == "192.168.127.2"
        assert running.stop() == 0


def test_closed_standard_files_lead_nowhere(host: Namespace, tmp_path: Path) -> None:
    """Go's runtime opens what is closed of descriptors 0 to 2 on /dev/null: scripts start daemons without them."""
    pid, log = tmp_path / "pid", tmp_path / "log"
    command = f"exec {MOORAGE} gvproxy -ssh-port -1 -listen-qemu unix://{tmp_path}/qemu -pid-file {pid} -log-file {log}"
    process = host.start("sh", "-c", f"{command} <&- >&- 2>&-")
    wait_for(lambda: log.exists() and READY in log.read_text(), 30.0, "gvproxy to be ready")
    for process_of_it in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        files = [os.readlink(f"/proc/{process_of_it.pid}/fd/{fd}") for fd in range(3)]
        assert not [file for file in files if not file.startswith(("/dev/null", "pipe:", str(log)))], files
    with BareVm(tmp_path / "qemu", MAC, timeout=15) as vm:
        assert vm.discover() == "192.168.127.2"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert log.read_text().endswith('msg="gvproxy exiting: signal caught"\n')


def test_it_is_found_by_its_name(host: Namespace, tmp_path: Path) -> None:
    """Scripts use `pgrep gvproxy`, `killall gvproxy`."""
    with Gvproxy(host, tmp_path, *NO_SSH) as running:
        assert psutil.Process(running.process.pid).name() == "gvproxy"


def test_a_silent_vm_does_not_keep_it(host: Namespace, tmp_path: Path) -> None:
    """SIGTERM with a silent VM leaves process and pid file behind there: end at once."""
    with (
        Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH, "-pid-file", "DIR/pid") as running,
        BareVm(running.qemu, "02:00:00:00:00:01"),
    ):
        wait_for(lambda: running.get("/v1/vms")["vms"], 10.0, "the VM")
        assert running.stop() == 0
        assert not (tmp_path / "pid").exists()


def test_the_pid_file_has_the_pid_of_the_process_that_was_started(host: Namespace, tmp_path: Path) -> None:
    """pid file: created (truncated), decimal pid, no newline, mode 0666&~umask"""
    for old in ("", "something much longer than a pid"):
        (tmp_path / "pid").unlink(missing_ok=True)
        if old:
            (tmp_path / "pid").write_text(old)
        before = os.umask(0o027)
        try:
            running = Gvproxy(host, tmp_path, *NO_SSH, "-pid-file", "DIR/pid")
        finally:
            os.umask(before)
        with running:
            assert (tmp_path / "pid").read_text() == str(running.process.pid)
            if not old:
                assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o640


def test_the_log_file_is_truncated_and_in_logruss_form(host: Namespace, tmp_path: Path) -> None:
    """log-file: truncated at start, logrus text (`time="RFC3339" level=... msg="..."`), mode 0666&~umask"""
    (tmp_path / "file").write_text("what was there before\n")
    before = os.umask(0o027)
    try:
        running = Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH, "-log-file", "DIR/new")
    finally:
        os.umask(before)
    wait_for(lambda: (tmp_path / "new").exists() and "waiting" in (tmp_path / "new").read_text(), 30.0, "the log")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    with running.attach():
        assert running.stop() == 0
    for line in (tmp_path / "new").read_text().splitlines():
        assert line.startswith('time="'), line
        assert " level=" in line
        assert " msg=" in line
    second = Gvproxy(host, tmp_path, *NO_SSH, "-log-file", "DIR/file")
    wait_for(lambda: "waiting for clients..." in (tmp_path / "file").read_text(), 30.0, "the log")
    assert second.stop() == 0
    assert "what was there before" not in (tmp_path / "file").read_text()
    assert second.log_text() == ""


def test_a_terminal_gets_coloured_lines(tmp_path: Path) -> None:
    """coloured `INFO[0000] ...` on a tty; not in a log file of a process that has one"""
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        command = [str(MOORAGE), "gvproxy", "-mtu", "-1"]
        with open(theirs, "wb", buffering=0) as stderr:
            for argv in (command, [*command, "-log-file", str(tmp_path / "file")]):
                assert subprocess.run(argv, stderr=stderr, timeout=30, check=False).returncode == 0
            shown = terminal.read(1 << 16)
    began = rb"\x1b\[36mINFO\x1b\[0m\[000\d\] gvproxy version v\S+ \(Moorage\) +\r\n"
    ended = rb"\x1b\[31mERRO\x1b\[0m\[000\d\] gvproxy exiting: mtu is out of range {9}\r\n"
    assert re.fullmatch(began + ended, shown), shown
    assert (tmp_path / "file").read_text().endswith('level=error msg="gvproxy exiting: mtu is out of range"\n')


def test_a_pid_file_that_cannot_be_written_ends_it_with_status_0(host: Namespace, tmp_path: Path) -> None:
    """Exit status 0 for pid-file failure"""
    running = Gvproxy(host, tmp_path, *NO_SSH, "-pid-file", "DIR/no/pid")
    assert running.ended() == 0
    assert f"gvproxy exiting: open {tmp_path}/no/pid: no such file or directory" in last_line(running)


def test_a_port_that_is_taken_ends_it_with_status_0(host: Namespace, tmp_path: Path) -> None:
    """Two instances on one ssh-port: second exits 0 with `cannot add network services: listen tcp 127.0.0.1:2222: bind:
    address already in use`"""
    with Gvproxy(host, tmp_path, "-listen", "unix://DIR/api.sock"):
        second = Gvproxy(host, tmp_path, name="second-")
        assert second.ended() == 0
    reason = "cannot add network services: listen tcp 127.0.0.1:2222: bind: address already in use"
    assert last_line(second).endswith(f'msg="gvproxy exiting: {reason}"')


def test_several_run_side_by_side(host: Namespace, tmp_path: Path) -> None:
    """No state is kept between runs, nor shared."""
    flags = ("-listen", "unix://DIR/NAMEapi.sock", "-listen-qemu", "unix://DIR/NAMEqemu.sock", *NO_SSH)
    first, second = (
        Gvproxy(host, tmp_path, *(flag.replace("NAME", name) for flag in flags), name=name) for name in ("a-", "b-")
    )
    with first, second, first.attach() as one, second.attach() as other:
        assert one.discover() == other.discover() == "192.168.127.2"
        zone = {"Name": "x.", "Records": [], "DefaultIP": "9.9.9.9"}
        assert first.request("POST", "/services/dns/add", zone)[0] == 200
        assert (len(first.get("/services/dns/all")), len(second.get("/services/dns/all"))) == (3, 2)
        first.stop()
        second.stop()
    again = Gvproxy(host, tmp_path, *(flag.replace("NAME", "a-") for flag in flags), name="a-")
    with again:
        assert len(again.get("/services/dns/all")) == 2


def test_a_qemu_that_disconnects_ends_it_with_status_0(host: Namespace, tmp_path: Path) -> None:
    """QEMU disconnect ends the whole process (exit 0); `cannot receive packets from ADDR, disconnecting: ...`"""
    with Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH, "-pid-file", "DIR/pid") as running:
        running.attach().close()
        assert running.ended() == 0
    *_, lost, exiting = (line.partition(" level=")[2] for line in running.log_text().splitlines() if "packets" in line)
    assert re.fullmatch(r'error msg="cannot receive packets from .+, disconnecting: EOF"', lost)
    assert exiting == lost.replace('msg="', 'msg="gvproxy exiting: ')
    assert last_line(running).endswith(exiting)
    assert not (tmp_path / "pid").exists()


def test_the_first_of_several_vms_that_leaves_ends_it(host: Namespace, tmp_path: Path) -> None:
    """QEMU disconnect ends the whole process (exit 0); better: a second VM is not left waiting meanwhile"""
    with (
        Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH) as running,
        running.attach() as first,
        running.attach(OTHER) as second,
    ):
        assert (first.discover(), second.discover()) == ("192.168.127.2", "192.168.127.3")
        assert running.get("/cam") == {MAC: 0, OTHER: 1}
        second.close()
        assert running.ended() == 0


def test_a_path_that_another_has_taken_stays_the_others(host: Namespace, tmp_path: Path) -> None:
    """podman has QEMU bind its monitor to the path of -listen-qemu; better: an end does not unlink it"""
    with (
        Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH) as running,
        running.attach(),
        socket.socket(socket.AF_UNIX) as other,
    ):
        running.qemu.unlink()
        other.bind(str(running.qemu))
        assert running.stop() == 0
        assert running.qemu.is_socket()


def test_a_bess_client_that_disconnects_ends_it_with_status_0(host: Namespace, tmp_path: Path) -> None:
    """BESS disconnect ends the whole process (exit 0)"""
    with Gvproxy(host, tmp_path, "-listen-bess", "unixpacket://DIR/bess", *NO_SSH) as running:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(str(tmp_path / "bess"))
            link.sendall(bytes(60))
        assert running.ended() == 0


def test_a_vm_on_standard_input_that_ends_ends_it_with_status_0(tmp_path: Path) -> None:
    """stdio disconnect ends the whole process (exit 0); stdio u16 LE on stdin/stdout, any non-empty string"""
    with (tmp_path / "log").open("wb") as log:
        command = [str(MOORAGE), "gvproxy", "-listen-stdio", "accept", *NO_SSH]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, b""), (tmp_path / "log").read_text()


def test_vpnkit_and_connect_clients_come_and_go(host: Namespace, tmp_path: Path) -> None:
    """vpnkit and /connect clients come and go; `cannot receive packets from ADDR, disconnecting: ...` of each"""
    flags = ("-listen", "unix://DIR/api.sock", "-listen-vpnkit", "unix://DIR/vpnkit.sock", *NO_SSH)
    with Gvproxy(host, tmp_path, *flags) as running:
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(tmp_path / "vpnkit.sock"))
                link.sendall(b"VMN3T" + bytes(44) + b"\x01c3d68012-0208-11ea-9fd7-f2189899ab08" + bytes(4))
                link.settimeout(10)
                assert len(link.recv(49, socket.MSG_WAITALL)) == 49
                assert link.recv(258, socket.MSG_WAITALL)[5:11].hex(":") == "5a:94:ef:e4:0c:ee"
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(running.api))
                link.sendall(b"POST /connect HTTP/1.1\r\nHost: \r\n\r\n")
                wait_for(lambda: [vm for vm in running.get("/v1/vms")["vms"] if vm["link"] == "http"], 10.0, "a VM")
            wait_for(lambda: not running.get("/v1/vms")["vms"], 10.0, "no VM")
        lost = re.findall(r'level=error msg="cannot receive packets from (.*), disconnecting: EOF"', running.log_text())
        assert lost == [f"uid={os.getuid()} pid={os.getpid()}"] * 4


def test_a_vfkit_peer_that_disappears_ends_nothing(host: Namespace, tmp_path: Path) -> None:
    """vfkit: socket bound with `unixgram`; first datagram's sender address becomes the peer; `VFKT` first datagram
    discarded; clients come and go"""
    flags = ("-listen", "unix://DIR/api.sock", "-listen-vfkit", "unixgram://DIR/v", *NO_SSH)
    with Gvproxy(host, tmp_path, *flags) as running:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.bind(str(tmp_path / "peer"))
            link.connect(str(tmp_path / "v"))
            link.send(b"VFKT")
            link.send(bytes.fromhex("ffffffffffff5a94efe40cee0806") + bytes(46))
            wait_for(lambda: running.get("/v1/vms")["vms"], 10.0, "the VM")
        (tmp_path / "peer").unlink()
        assert running.get("/services/forwarder/all") == []
        lost = re.compile(f'level=error msg="cannot receive packets from .*{tmp_path}/peer, disconnecting: ')
        wait_for(lambda: lost.search(running.log_text()), 10.0, "the loss to be told")


def test_ready_is_told_when_a_vm_can_attach(host: Namespace, tmp_path: Path) -> None:
    """`ready` is sent before the VM sockets exist there: send it when a VM can attach."""
    notified = Notified(tmp_path / "notified")
    running = Gvproxy(host, tmp_path, *SOCKETS, *NO_SSH, "-notification", "unix://DIR/notified")
    try:
        assert notified.wait(1) == [{"notification_type": "ready"}]
        with running, running.attach():
            running.stop()
    finally:
        notified.close()
