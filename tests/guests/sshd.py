"""A real sshd (Debian's openssh-server) in a namespace guest, with a key that may log in as root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.guests.namespace import NamespaceGuest
from tests.guests.waiting import wait_for

PORT = 22


@dataclass(frozen=True, slots=True)
class SshServer:
    """What a client must know."""

    key: Path
    """Private key of root's."""
    known_hosts: Path
    """The server's host key, for any host name."""

    def options(self, *more: str) -> list[str]:
        """For ssh and scp: this key, and no other host key than the server's."""
        given = (
            *("IdentitiesOnly=yes", f"IdentityFile={self.key}", "BatchMode=yes"),
            *(f"UserKnownHostsFile={self.known_hosts}", "StrictHostKeyChecking=yes", "HostKeyAlias=guest", *more),
        )
        return [word for option in given for word in ("-o", option)]


def make_server(directory: Path) -> SshServer:
    """Keys and configuration in `directory`."""
    for name in ("host_key", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    known_hosts = directory / "known_hosts"
    known_hosts.write_text("guest " + (directory / "host_key.pub").read_text())
    (directory / "sshd_config").write_text(
        f"HostKey {directory}/host_key\nAuthorizedKeysFile {directory}/id.pub\nPidFile none\nStrictModes no\n"
        "UsePAM no\nPermitRootLogin yes\nMaxSessions 100\nSubsystem sftp internal-sftp\n"
    )
    return SshServer(directory / "id", known_hosts)


@contextlib.contextmanager
def sshd(guest: NamespaceGuest, server: SshServer) -> Iterator[None]:
    """sshd on the guest's port 22; its connections end with it."""
    directory = server.key.parent
    log = directory / "sshd.log"
    # /run is the guest's own, for sshd insists on a directory there
    run = f"mount -t tmpfs run /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -f {directory}/sshd_config -E {log}"
    process = guest.namespace.start("sh", "-c", run)
    try:
        wait_for(lambda: log.exists() and "Server listening" in log.read_text(), 10, "sshd to listen")
        yield
    finally:
        server_process = psutil.Process(process.pid)
        for one in (*server_process.children(recursive=True), server_process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        log.unlink()
