"""A guest in QEMU, by software emulation: Debian's cloud kernel and an initramfs of busybox.

Commands travel over the second serial port, one line each: ``ID SECONDS BASE64(COMMAND)``; the answer is
``ID STATUS BASE64(OUTPUT)``. The first serial port is the kernel's console, kept in a file for failures.
"""

from __future__ import annotations

import base64
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.guests.guest import DHCP_SCRIPT, Guest, Result
from tests.guests.namespace import Namespace

KERNEL = Path(__file__).parents[2] / ".cache" / "guest"
"""Debian's kernel package, unpacked by ``scripts/fetch-guest-kernel``: ``vmlinuz``, ``lib/modules/VERSION``."""

BOOT_TIMEOUT = 60.0
ANSWER_MARGIN = 10.0
"""Seconds granted beyond the command's own limit: emulation is slow, and two cores are shared."""

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev; mount -t tmpfs none /tmp
for module in $(cat /modules); do insmod /$module; done
ip link set lo up
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1
echo ready
while read -r id seconds command; do
    echo "$command" | base64 -d >/tmp/command
    timeout -k 1 "$seconds" sh /tmp/command </dev/null >/tmp/output 2>&1
    echo "$id $? $(head -c 262144 /tmp/output | base64 | tr -d '\\n')"
done
"""


def build_initramfs(directory: Path, probe: Path) -> Path:
    """Pack busybox, the kernel modules of a virtio card, udhcpc's script and `probe`; return the archive."""
    root = directory / "initramfs"
    for folder in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / folder).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    for source, name in ((busybox, "busybox"), (DHCP_SCRIPT, "udhcpc.sh"), (probe, "probe")):
        shutil.copy(source, root / "bin" / name)
    modules = _modules("virtio_pci", "virtio_net")
    for module in modules:
        shutil.copy(module, root)
    (root / "modules").write_text("".join(f"{module.name}\n" for module in modules))
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    archive = directory / "initramfs.gz"
    with archive.open("wb") as packed:
        subprocess.run("find . | cpio -o -H newc --quiet | gzip -1", cwd=root, shell=True, stdout=packed, check=True)
    return archive


def _modules(*names: str) -> list[Path]:
    """The files of these modules and of what they need, in the order to insert them."""
    (version,) = (KERNEL / "lib" / "modules").iterdir()
    files: list[Path] = []
    for name in names:
        shown = subprocess.run(
            ["modprobe", "-d", KERNEL, "-S", version.name, "--show-depends", name],
            env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        found = (Path(line.split()[1]) for line in shown.stdout.splitlines() if line.startswith("insmod"))
        files += [file for file in found if file not in files]
    return files


class QemuGuest(Guest):
    """A running virtual machine."""

    interface = "eth0"
    probe = "/bin/probe"
    dhcp_script = "/bin/udhcpc.sh"
    lease_file = "/tmp/lease"

    def __init__(
        self, directory: Path, initramfs: Path, netdev: str, mac: str, host: Namespace, device: Sequence[str] = ()
    ) -> None:
        """Boot. `netdev` is QEMU's option without its id: ``stream,addr.type=unix,addr.path=/run/vm.sock``."""
        self.mac = mac
        self._console = directory / f"console-{mac.replace(':', '')}.log"
        self._serial = 0
        argv = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"]
        argv += ["-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(initramfs)]
        argv += ["-append", "console=ttyS0 panic=-1 quiet", "-serial", f"file:{self._console}", "-serial", "stdio"]
        kind, _, rest = netdev.partition(",")
        argv += ["-netdev", f"{kind},id=n,{rest}", "-device", f"virtio-net-pci,netdev=n,mac={mac},romfile=", *device]
        self.qemu = subprocess.Popen(host.command(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._read_line(time.monotonic() + BOOT_TIMEOUT, "ready")
        except BaseException:
            self.close()
            raise

    def attempt(self, command: str, timeout: float = 30.0) -> Result:
        self._serial += 1
        seconds = max(1, round(timeout))
        request = f"{self._serial} {seconds} {base64.b64encode(command.encode()).decode()}\n"
        assert self.qemu.stdin is not None
        os.write(self.qemu.stdin.fileno(), request.encode())
        answer = self._read_line(time.monotonic() + seconds + ANSWER_MARGIN, str(self._serial))
        _, status, output = (answer + " ").split(" ", 2)
        return Result(int(status), base64.b64decode(output).decode(errors="replace"))

    def _read_line(self, deadline: float, beginning: str) -> str:
        """The next whole line that begins with this word; what came before it is dropped."""
        assert self.qemu.stdout is not None
        descriptor = self.qemu.stdout.fileno()
        received = b""
        while True:
            line, newline, rest = received.partition(b"\n")
            if newline:
                text = line.decode(errors="replace").strip()
                if text.split(" ", 1)[0] == beginning:
                    return text
                received = rest
                continue
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(descriptor, 65536) if ready else b""
            if not more:
                console = self._console.read_text(errors="replace")[-4000:] if self._console.exists() else ""
                why = "QEMU ended" if ready else "no answer in time"
                raise AssertionError(f"QEMU guest: {why}, waiting for {beginning!r}\n{received[-500:]!r}\n{console}")
            received += more

    def close(self) -> None:
        """Pull the plug."""
        self.qemu.kill()
        self.qemu.communicate()
