"""The runtime and the state directory: where they are, and that they are ours alone."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from supervisor.endpoints import MAX_UNIX_PATH
from supervisor.errors import ConfigError, StartError

LONGEST_SOCKET_NAME = "handover.sock"


def runtime_dir(option: Path | None, env: Mapping[str, str], is_root: bool) -> Path:
    """The option, else what systemd gave, else the usual place. Raises ConfigError when there is none."""
    if option is not None:
        return option.absolute()
    if given := env.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if is_root:
        return Path("/run/moorage")
    if given := env.get("XDG_RUNTIME_DIR"):
        return Path(given) / "moorage"
    raise ConfigError("--runtime-dir: expected a directory, as $XDG_RUNTIME_DIR is not set")


def state_dir(option: Path | None, env: Mapping[str, str], is_root: bool) -> Path:
    """The option, else what systemd gave, else the usual place. Raises ConfigError when there is none."""
    if option is not None:
        return option.absolute()
    if given := env.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if is_root:
        return Path("/var/lib/moorage")
    if given := env.get("XDG_STATE_HOME"):
        return Path(given) / "moorage"
    if given := env.get("HOME"):
        return Path(given) / ".local/state/moorage"
    raise ConfigError("--state-dir: expected a directory, as neither $XDG_STATE_HOME nor $HOME is set")


def check_socket_paths(runtime: Path) -> None:
    """Raise ConfigError when the directory's name is too long for a unix socket inside it."""
    room = MAX_UNIX_PATH - len(LONGEST_SOCKET_NAME) - 1
    if len(os.fsencode(runtime)) > room:
        raise ConfigError(f"--runtime-dir: expected a path of at most {room} bytes, got {runtime}")


def prepare_private_dir(path: Path) -> None:
    """Make the directory, or make it private (0700). Raises StartError when it cannot be, or is shared like /tmp."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
        if mode & stat.S_ISVTX:
            raise StartError(f"directory {path} is shared with other users; name one of its own")
        if mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise StartError(f"cannot use directory {path}: {error.strerror or error}") from error


def lock_dir(path: Path) -> int:
    """Hold the directory for this process; the descriptor is the lock. Raises StartError when another holds it."""
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StartError(f"directory {path} is in use by another moorage") from error
    return fd
