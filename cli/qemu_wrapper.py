"""``moorage qemu-wrapper``: a QEMU on a socket that is connected already, for its ``-netdev socket,fd=3``."""

from __future__ import annotations

import os
import socket
import sys

FD = 3
EXIT_NOT_CONNECTED = 1
EXIT_NOT_FOUND, EXIT_NOT_EXECUTABLE = 127, 126
"""As a shell says it."""


def run(path: str, command: list[str]) -> int:
    """Connect to a unix socket, make it descriptor 3, and become the command; an exit status where that fails."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError as error:
        print(f"moorage: cannot connect to {path}: {error.strerror or error}", file=sys.stderr)
        sock.close()
        return EXIT_NOT_CONNECTED
    fd = sock.detach()
    if fd == FD:
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, FD)
        os.close(fd)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.close(FD)
        print(f"moorage: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE
