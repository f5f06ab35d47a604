"""A guest in QEMU, by software emulation: Debian's cloud kernel and an initramfs of busybox."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.guests.console import COMMAND_LOOP, ConsoleGuest
from tests.guests.guest import DHCP_SCRIPT
from tests.guests.namespace import Namespace

KERNEL = Path(__file__).parents[2] / ".cache" / "guest"
"""Debian's kernel package, unpacked by ``scripts/fetch-guest-kernel``: ``vmlinuz``, ``lib/modules/VERSION``."""

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in $(cat /modules); do insmod /$module; done
ip link set lo up
until set -- /dev/vport*; [ -c "$1" ]; do sleep 0.1; done
"""
# The root is in memory itself. /tmp stays a folder of it: the host's checkout may lie there, and be in the image.
DRIVERS = ("virtio_pci", "virtio_net", "virtio_console")


def build_initramfs(
    directory: Path,
    probe: Path,
    drivers: Sequence[str] = (),
    script: str = COMMAND_LOOP.format(device='"$1"'),
    files: Path | None = None,
) -> Path:
    """Pack busybox, kernel modules (those named and `DRIVERS`), udhcpc's script and `probe`; the archive.

    `script`: what init does in the end, with the first virtio port as ``$1``; `files`: a folder of more files.
    """
    root = directory / "initramfs"
    for folder in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / folder).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    for source, name in ((busybox, "busybox"), (DHCP_SCRIPT, "udhcpc.sh"), (probe, "probe")):
        shutil.copy(source, root / "bin" / name)
    modules = _modules(*DRIVERS, *drivers)
    for module in modules:
        shutil.copy(module, root)
    (root / "modules").write_text("".join(f"{module.name}\n" for module in modules))
    (root / "init").write_text(INIT + script)
    (root / "init").chmod(0o755)
    if files is not None:
        shutil.copytree(files, root, dirs_exist_ok=True)
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


class QemuGuest(ConsoleGuest):
    """A running virtual machine. The serial port is the kernel's console; commands take a virtio port, since an
    emulated serial port loses interrupts when the host is busy, and its guest then waits for the next character."""

    interface = "eth0"
    probe = "/bin/probe"
    dhcp_script = "/bin/udhcpc.sh"

    def __init__(
        self,
        directory: Path,
        initramfs: Path,
        netdev: str,
        mac: str,
        host: Namespace,
        device: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        """Boot. `netdev` is QEMU's option without its id: ``stream,addr.type=unix,addr.path=/run/vm.sock``; `wrapper`:
        a command that becomes QEMU's."""
        console = directory / f"console-{mac.replace(':', '')}.log"
        argv = [
            *(*wrapper, "qemu-system-x86_64", "-accel", "tcg", "-m", "256"),
            *("-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(initramfs), "-append", "console=ttyS0 panic=-1 quiet"),
            *("-serial", f"file:{console}", "-chardev", "stdio,id=commands"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=commands"),
        ]
        kind, _, rest = netdev.partition(",")
        argv += ["-netdev", f"{kind},id=n,{rest}", "-device", f"virtio-net-pci,netdev=n,mac={mac},romfile=", *device]
        super().__init__(argv, console, mac, host)
