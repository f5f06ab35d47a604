"""The real ``podman machine``, as a user who is not root, with Moorage where it looks for gvproxy.

Its disk is made here: Debian's cloud kernel, busybox, a real sshd, and in place of podman's API one that only answers.
Podman gives the VM its SSH key in an Ignition file, and waits until it writes to a virtio port.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.guests.namespace import Namespace
from tests.guests.qemu import KERNEL, build_initramfs
from tests.guests.service import MOORAGE

TOOLS = ("podman", "qemu-img", "syslinux", "mcopy", "ssh", "sshd")
USER = 65534
"""Podman's user, as it sees itself: outside its user namespace it is who runs the test, and owns the same files."""
VM = "vm"

SCRIPT = f"""
mkdir /dev/pts
mount -t devpts none /dev/pts
hostname {VM}
grep -o 'ssh-[^"]*' /sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw >/etc/keys
LEASE_FILE=/tmp/lease udhcpc -i eth0 -f -n -q -t 30 -T 1 -O search -O mtu -s /bin/udhcpc.sh
mkdir -p /run/sshd /run/user/{USER}/podman
probe http /run/user/{USER}/podman/podman.sock &
/usr/sbin/sshd -f /etc/sshd_config
acpid -l /dev/null
echo Ready >"$1"
while true; do sleep 1000; done
"""
POWER_OFF = "#!/bin/sh\nexec poweroff -f\n"
PASSWD = "root:x:0:0::/:/bin/sh\nsshd:x:74:74::/run/sshd:/bin/false\ncore:x:1000:1000::/:/bin/sh\n"
SSHD_CONFIG = "HostKey /etc/host_key\nAuthorizedKeysFile /etc/keys\nStrictModes no\nUsePAM no\nPidFile none\n"
SYSLINUX = "DEFAULT linux\nLABEL linux\nKERNEL vmlinuz\nAPPEND initrd=initrd.gz panic=-1 quiet\n"

QEMU = """#!/bin/sh
# No KVM here. All else is podman's: its descriptor 3, its options.
for word; do
    case $word in kvm) word=tcg ;; host) word=max ;; esac
    set -- "$@" "$word"
    shift
done
exec qemu-system-x86_64 "$@"
"""


def build_disk(directory: Path, probe: Path) -> Path:
    """A disk that a BIOS boots: SYSLINUX on a FAT file system."""
    files = directory / "files"
    for folder in ("etc/acpi/PWRF", "usr/sbin"):
        (files / folder).mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", files / "etc/host_key"], check=True)
    for name, text in (("passwd", PASSWD), ("sshd_config", SSHD_CONFIG), ("acpi/PWRF/00000080", POWER_OFF)):
        (files / "etc" / name).write_text(text)
    (files / "etc/acpi/PWRF/00000080").chmod(0o755)
    _copy_program(Path("/usr/sbin/sshd"), files)
    initramfs = build_initramfs(directory, probe, ("qemu_fw_cfg", "button", "evdev"), SCRIPT, files)
    disk, configuration = directory / "disk.img", directory / "syslinux.cfg"
    configuration.write_text(SYSLINUX)
    with disk.open("wb") as empty:
        empty.truncate(64 << 20)
    subprocess.run(["mformat", "-i", disk, "-F", "::"], check=True)
    for source, name in ((KERNEL / "vmlinuz", "vmlinuz"), (initramfs, "initrd.gz"), (configuration, "syslinux.cfg")):
        subprocess.run(["mcopy", "-i", disk, source, f"::{name}"], check=True)
    subprocess.run(["syslinux", "--install", disk], check=True)
    return disk


def _copy_program(program: Path, root: Path) -> None:
    """The program and the libraries it needs, where they are on the host."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for name in (str(program), *(word for word in listed.split() if word.startswith("/"))):
        (root / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, root / name[1:])


class Podman:
    """Podman with a home of its own, on a namespace that plays the host."""

    def __init__(self, host: Namespace) -> None:
        self._host = host
        self.directory = Path(tempfile.mkdtemp(prefix="moorage-"))  # short: the paths of its sockets are long
        self.temporary, self.runtime = self.directory / "tmp", self.directory / "run/podman"
        self.api = self.directory / f"home/.local/share/containers/podman/machine/{VM}/podman.sock"
        self.proxy_pid = self.runtime / f"{VM}_proxy.pid"
        helpers = self.directory / "helpers"
        for folder in ("tmp", "run", "home", "helpers"):
            (self.directory / folder).mkdir()
        (helpers / "gvproxy").symlink_to(MOORAGE)
        (helpers / "qemu-system-x86_64").write_text(QEMU)
        (helpers / "qemu-system-x86_64").chmod(0o755)
        configuration = self.directory / "containers.conf"
        configuration.write_text(f'[engine]\nhelper_binaries_dir = ["{helpers}"]\n[machine]\nvolumes = []\n')
        self._env = {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            "HOME": str(self.directory / "home"),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "TMPDIR": str(self.temporary),
            "CONTAINERS_CONF": str(configuration),
        }

    def attempt(self, *arguments: str, timeout: float = 90.0) -> subprocess.CompletedProcess[str]:
        """``podman`` with these arguments. What it starts and leaves running keeps none of its pipes."""
        user = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}"]
        return subprocess.run(
            self._host.command([*user, "podman", *arguments]),
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """What it prints; it must succeed."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """``podman machine start``, at the end of which podman pings the API through the forwarded socket."""
        started = self.attempt("machine", "start", VM)
        assert started.returncode == 0, started.stderr
        assert f'Machine "{VM}" started successfully' in started.stdout
        assert "failed" not in started.stderr

    def ssh(self, command: str) -> str:
        """Run a command in the VM."""
        return self.run("machine", "ssh", VM, command)

    def close(self) -> None:
        """Remove what it wrote; what it started ends with the namespace."""
        shutil.rmtree(self.directory)
