"""``python -m supervisor.gvproxy``: the service with gvproxy's command line and manners.

It keeps nothing between two runs: its directories are its own, and go with it, also when it is killed (``podman machine
stop`` does that). Exit status as gvproxy's: 0 for every
end of a service that was started, also one that could not listen; 1 for a configuration that cannot be; 2 for flags
that are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging.config
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from proto.go_flags import FlagError, HelpAsked, parse, usage
from supervisor import logs
from supervisor.errors import ConfigError, StartError
from supervisor.gvproxy import yaml_file
from supervisor.gvproxy.command_line import FLAGS
from supervisor.gvproxy.plan import LOG_FORMAT, RUNTIME, Plan, make
from supervisor.limits import raise_open_files
from supervisor.paths import check_socket_paths
from supervisor.service import Service

COMMAND = "gvproxy"
REMOVER = ("/bin/sh", "-c", 'trap "" HUP INT TERM; read -r _; rm -rf -- "$0"')
"""Removes the directory it is given when its standard input ends, which it does with the process at the other end."""

SHORT_BASE = "/tmp"

log = logging.getLogger(COMMAND)


def main() -> NoReturn:
    """Be gvproxy."""
    _open_standard_files()
    flags = _flags()
    if flags["version"]:
        print(_version())
        sys.exit(0)
    _log_at("info")
    try:
        file = yaml_file.read(Path(flags["config"])) if flags["config"] else None
        _log_to(flags["log-file"] or (file.log_file if file else ""))
        plan = make(flags, file)
        reason = _run(plan)
    except ConfigError as error:
        log.critical("%s", error)
        sys.exit(1)
    except StartError as error:
        reason = str(error)
    log.error("gvproxy exiting: %s", reason)
    sys.exit(0)


def _open_standard_files() -> None:
    """Those of the first three descriptors that whoever started us has closed lead nowhere, as in every Go program."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, fd)  # the lowest free descriptor may be this very one, which then has to be inheritable
            os.set_inheritable(fd, True)
            if nowhere != fd:
                os.close(nowhere)
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))  # noqa: SIM115  # as long as we run


def _flags() -> dict[str, Any]:
    try:
        return parse(FLAGS, sys.argv[1:])
    except HelpAsked:
        print(usage(COMMAND, FLAGS), file=sys.stderr)
        sys.exit(0)
    except FlagError as error:
        print(f"{error}\n{usage(COMMAND, FLAGS)}", file=sys.stderr)
        sys.exit(2)


def _version() -> str:
    return f"gvproxy version v{metadata.version('moorage')} (Moorage)"


def _log_at(level: str) -> None:
    logging.config.dictConfig(logs.config(level, LOG_FORMAT))


def _log_to(path: str) -> None:
    """Standard error, and so the log of every process of the service, goes to a file. Raises ConfigError."""
    if not path:
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = f"open {path}: {(error.strerror or str(error)).lower()}"
        raise ConfigError(f"unable to open log file {path}: {reason}") from error
    os.dup2(fd, sys.stderr.fileno())
    os.close(fd)


def _run(plan: Plan) -> str:
    """Why it ended. Raises ConfigError and StartError."""
    with _own_directory() as directory:
        _take_name()
        settings = plan.settings(directory)
        service = Service(settings, has_successor=False, on_loss=log.error)
        _log_at(settings.log_level)
        log.info("%s", _version())
        for warning in plan.warnings:
            log.warning("%s", warning)
        raise_open_files()
        with _pid_file(plan.pid_file):
            return plan.failure or asyncio.run(_serve(service, plan))


async def _serve(service: Service, plan: Plan) -> str:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup(1)
            loop.add_signal_handler(signum, stop.set)

    def announce(_: str) -> None:
        log.info("waiting for clients...")
        for url in plan.api:
            log.info("listening %s", url)
        if plan.services:
            log.info("enabling services API. Listening %s", plan.services)

    try:
        await service.run(stop, announce)
    except StartError as error:
        return plan.listening.explain(error)
    return service.reason or "signal caught"


def _take_name() -> None:
    """``pgrep gvproxy`` and ``killall gvproxy`` find this process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(COMMAND)


@contextlib.contextmanager
def _own_directory() -> Iterator[Path]:
    """A directory that goes with this process, also when it is killed: a child that outlives it removes it.

    Raises StartError.
    """
    try:
        directory = tempfile.mkdtemp(prefix="moorage-", dir=_base())
        remover = subprocess.Popen([*REMOVER, directory], stdin=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        raise StartError(f"cannot use a temporary directory: {error.strerror or error}") from error
    try:
        yield Path(directory)
    finally:
        remover.communicate()


def _base() -> str:
    """Where that directory is: $TMPDIR, unless its name leaves no room for those of sockets."""
    usual = tempfile.gettempdir()
    try:
        check_socket_paths(Path(usual, "moorage-12345678", RUNTIME))
    except ConfigError:
        return SHORT_BASE
    return usual


@contextlib.contextmanager
def _pid_file(path: str) -> Iterator[None]:
    """The process id in a file for as long as the service runs. Raises StartError."""
    if not path:
        yield
        return
    file = Path(path)
    try:
        file.write_text(str(os.getpid()))
    except OSError as error:
        raise StartError(f"open {path}: {(error.strerror or str(error)).lower()}") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
