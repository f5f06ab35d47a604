"""The agent's command line."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from agent.dhcp import PROGRAMS
from agent.endpoint import Endpoint, parse
from agent.tap import MAX_NAME_LENGTH
from proto.framing import HEADERS

DEFAULT_URL = "vsock://2:1024/connect"
RETRY_FIRST, RETRY_LONGEST = 0.1, 5.0
"""Seconds between attempts to connect; doubled after each failure."""
RESOLV_CONF = Path("/etc/resolv.conf")
NETNS_CONFIGURATION = Path("/etc/netns")
OWN, NONE = "own", "none"
DESCRIPTION = """\
Joins a tap device to a Moorage or gvproxy socket, and configures it by DHCP. When the host goes away the device stays,
and the agent connects again, waiting longer after every failure."""
EPILOG = """\
URLs:
  vsock://CID:PORT/connect   the host of this VM; CID 2 is the host
  unix:///PATH, tcp://HOST:PORT
                             with /connect behind it: an API socket, which is asked by HTTP to become a link
  stdio:PROGRAM ARGS         a program's standard input and output; stdio: alone is our own

exit status:
  0  ended by SIGTERM or SIGINT; a device of --stop-if-exist is there; our own standard input ended (stdio:)
  1  the device could not be made, or was taken away
  2  a bad argument"""


def parse_options(arguments: list[str] | None, is_patient: bool = False) -> argparse.Namespace:
    """Options from the command line; a bad one ends the process with status 2.

    `is_patient`: what is not there yet, the device to join or the program to start, is waited for.
    """
    parser = argparse.ArgumentParser(
        prog="moorage-agent",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--connect", type=_endpoint, default=DEFAULT_URL, metavar="URL", help="where the host is (default: %(default)s)"
    )
    add(
        "--framing",
        choices=sorted(HEADERS),
        help="default: stream16 with /connect, vsock and stdio, else stream32, which is QEMU's",
    )
    add("--interface", type=_interface, default="tap0", metavar="NAME", help="of the device (default: %(default)s)")
    add("--netns", metavar="NAME", help="make the device in this network namespace (ip netns)")
    add(
        "--pre-existing", action="store_true", help="join a tap device that is there; without --dhcp, leave it as it is"
    )
    add(
        "--stop-if-exist",
        type=_interfaces,
        default=[],
        metavar="NAME[,NAME...]",
        help="end at once where such a device is there; gvforwarder's default is eth0,ens3,enp0s1, ours is none",
    )
    add("--mac", type=_mac, help="such as 5a:94:ef:e4:0c:ee; default: one made of this machine's id, always the same")
    add("--mtu", type=int, metavar="BYTES", help="default: what DHCP says")
    add(
        "--dhcp",
        choices=[OWN, *PROGRAMS, NONE],
        help=f"who configures the device: the agent, that program, or nobody (default: {OWN})",
    )
    add(
        "--resolv-conf",
        type=Path,
        metavar="PATH",
        help=f"written while there is a lease, then restored (default: {RESOLV_CONF}; with --netns, the one that "
        "ip netns lays over it, where there is a directory for it); not with --dhcp PROGRAM, which has its own ways",
    )
    add("--no-resolv-conf", action="store_true", help="leave it as it is")
    parser.set_defaults(retry=(RETRY_FIRST, RETRY_LONGEST), is_patient=is_patient)
    options = parser.parse_args(arguments)
    if options.dhcp is None:
        options.dhcp = NONE if options.pre_existing else OWN
    if options.no_resolv_conf:
        options.resolv_conf = None
    elif options.resolv_conf is None:
        options.resolv_conf = _default_resolv_conf(options.netns)
    if options.dhcp in PROGRAMS and shutil.which(options.dhcp) is None:
        parser.error(f"--dhcp {options.dhcp}: there is no such program")
    program = options.connect.program
    if program and not is_patient and shutil.which(program) is None:
        parser.error(f"--connect {options.connect.url}: no program {program!r}")
    return options


def _default_resolv_conf(netns: str | None) -> Path | None:
    """The host's own file is none of a namespace's business."""
    if netns is None:
        return RESOLV_CONF
    directory = NETNS_CONFIGURATION / netns
    return directory / RESOLV_CONF.name if directory.is_dir() else None


def _endpoint(text: str) -> Endpoint:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _interface(text: str) -> str:
    if not 0 < len(text.encode()) <= MAX_NAME_LENGTH:
        raise argparse.ArgumentTypeError(f"{text!r}: an interface's name has 1 to {MAX_NAME_LENGTH} bytes")
    return text


def _interfaces(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a unicast MAC such as 5a:94:ef:e4:0c:ee")
    return mac
