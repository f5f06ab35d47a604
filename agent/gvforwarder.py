"""gvforwarder's command line (containers/gvisor-tap-vsock 3405fe5c): its flags and their defaults, as the agent's.

As there, nothing but a signal ends it once it runs: what is missing or taken away is tried again every second.
The program in the VM is configured as before by a unit that was written for gvforwarder: by udhcpc or dhclient where
there is one of them, else by the agent itself.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from importlib import metadata
from typing import Any
from urllib.parse import unquote

from agent import options
from agent.dhcp import PROGRAMS
from agent.endpoint import UPGRADE_PATH
from proto.go_flags import Flag, FlagError, HelpAsked, parse, usage

NAME = "gvforwarder"
RETRY = 1.0
"""s between attempts to connect."""
FLAGS = {
    "debug": Flag(bool, "taken for gvforwarder's sake: the log has no packets"),
    "iface": Flag(str, "name of the tap device", "tap0"),
    "mac": Flag(str, "MAC of the tap device", "5a:94:ef:e4:0c:ee"),
    "mtu": Flag(int, "taken for gvforwarder's sake: frames may have any length, and the device's MTU is DHCP's", 4000),
    "preexisting": Flag(bool, "join a tap device that is there, and leave it as it is"),
    "stop-if-exist": Flag(str, "end at once where one of these devices is there", "eth0,ens3,enp0s1"),
    "url": Flag(str, "where the host is: vsock://, unix:// or stdio:", options.DEFAULT_URL),
    "version": Flag(bool, "print the version"),
}


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The agent's options; a bad flag ends the process with status 2, `-h` and `-version` with 0."""
    try:
        flags = parse(FLAGS, arguments)
    except HelpAsked:
        print(usage(NAME, FLAGS), file=sys.stderr)
        sys.exit(0)
    except FlagError as error:
        print(f"{error}\n{usage(NAME, FLAGS)}", file=sys.stderr)
        sys.exit(2)
    if flags["version"]:
        print(f"{NAME} version v{metadata.version('moorage')} (Moorage)")
        sys.exit(0)
    found = options.parse_options(_own(flags), is_patient=True)
    found.retry = (RETRY, RETRY)
    return found


def _own(flags: dict[str, Any]) -> list[str]:
    """The agent's command line for these flags."""
    own = [f"--connect={_url(flags['url'])}", f"--interface={flags['iface']}"]
    own.append(f"--stop-if-exist={flags['stop-if-exist']}")
    if flags["preexisting"]:
        return [*own, "--pre-existing"]
    if flags["mac"]:
        own.append(f"--mac={flags['mac']}")
    program = next(filter(shutil.which, PROGRAMS), None)
    return [*own, f"--dhcp={program}"] if program else own


def _url(url: str) -> str:
    """The agent's URL for one of gvforwarder's, where all of ``unix://`` is a path and all before ``?`` a program."""
    if url.startswith("unix:"):
        return url + UPGRADE_PATH
    if url.startswith("stdio:"):
        program, given, flags = url[len("stdio:") :].partition("?")
        return f"stdio:{shlex.quote(unquote(program))}{given}{flags}"
    return url
