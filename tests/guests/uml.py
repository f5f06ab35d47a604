"""A guest in User Mode Linux: a real kernel as a program, with the host's files, read-only, as its root.

Debian's package user-mode-linux. Its card speaks BESS's protocol: a SEQPACKET socket, a frame a message.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.guests.console import COMMAND_LOOP, ConsoleGuest
from tests.guests.guest import DHCP_SCRIPT
from tests.guests.namespace import Namespace

PROGRAM = "linux.uml"
# The kernel mounts /dev by itself. Busybox's shell runs its own programs by way of /proc/self/exe, which on the host's
# /proc is the kernel. /tmp is filled before it covers the host's, from where the files come.
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
busybox mount -t tmpfs none /mnt
busybox mkdir /mnt/bin && busybox --install -s /mnt/bin
busybox cp {probe} {dhcp_script} /mnt/bin/
busybox mount --move /mnt /tmp
export PATH=/tmp/bin:$PATH
touch /tmp/resolv.conf && mount --bind /tmp/resolv.conf /etc/resolv.conf
ip link set lo up
stty -F {line} raw -echo
"""
LINE = "/dev/ttyS0"


class UmlGuest(ConsoleGuest):
    """A running User Mode Linux. Its first serial line takes commands; its console is standard error."""

    interface = "vec0"
    probe = "/tmp/bin/probe"
    dhcp_script = f"/tmp/bin/{DHCP_SCRIPT.name}"

    def __init__(self, directory: Path, socket: Path, mac: str, probe: Path, host: Namespace) -> None:
        """Boot, attached to a BESS listener's `socket`."""
        name = f"uml-{mac.replace(':', '')}"
        init = directory / name
        prepare = INIT.format(probe=probe, dhcp_script=DHCP_SCRIPT, line=LINE)
        init.write_text(prepare + COMMAND_LOOP.format(device=LINE))
        init.chmod(0o755)
        argv = [PROGRAM, f"umid={name}-dir", f"uml_dir={directory}/", "mem=128M", "quiet"]
        argv += [f"vec0:transport=bess,dst={socket},depth=128,gro=1,mac={mac}"]
        argv += ["root=/dev/root", "rootfstype=hostfs", f"init={init}"]
        argv += ["con=null", "con0=null,fd:2", "ssl0=fd:0,fd:1"]
        super().__init__(argv, directory / f"{name}.log", mac, host)


def is_installed() -> bool:
    """Whether User Mode Linux can run here."""
    return shutil.which(PROGRAM) is not None
