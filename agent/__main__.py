"""``python -m agent``: makes a tap device and keeps it joined to a Moorage socket.

The device stays when the link ends; the agent connects again, waiting longer after every failure. SIGTERM or SIGINT:
the device goes, exit status 0. Exit status 1: the device could not be made or was taken away; 2: a bad argument.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from agent.bridge import Bridge, TapGone
from agent.tap import network_namespace, open_tap
from proto.framing import HEADERS, FramingError

log = logging.getLogger("agent")

CONNECT_TIMEOUT = 5.0
RETRY_FIRST, RETRY_LONGEST = 0.1, 5.0
"""Seconds between attempts to connect; doubled after each failure."""


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal ends it."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        with network_namespace(options.netns):
            tap = open_tap(options.interface, options.mac, options.mtu)
    except (OSError, ValueError) as error:
        log.error("cannot make the tap device %s: %s", options.interface, error)
        return 1
    try:
        _serve(tap, options)
    except TapGone as error:
        log.error("%s", error)
        return 1
    finally:
        os.close(tap)


def _serve(tap: int, options: argparse.Namespace) -> NoReturn:
    """Keep the tap joined to the socket; ends by SystemExit or TapGone."""
    pause = RETRY_FIRST
    while True:
        try:
            link = _connect(options.connect)
        except OSError as error:
            log.warning("%s: %s; next try in %.1f s", options.connect.geturl(), error, pause)
            time.sleep(pause)
            pause = min(pause * 2, RETRY_LONGEST)
            continue
        began = time.monotonic()
        with link:
            log.info("connected to %s", options.connect.geturl())
            bridge = Bridge(tap, link, options.framing)
            try:
                bridge.run()
                log.warning("the link was closed by the other end")
            except (OSError, FramingError) as error:
                log.warning("the link broke: %s", error)
        # A link that is closed as soon as it opens is a failure too.
        pause = RETRY_FIRST if time.monotonic() - began > RETRY_LONGEST else min(pause * 2, RETRY_LONGEST)
        time.sleep(pause)


def _connect(url: SplitResult) -> socket.socket:
    if url.scheme == "tcp":
        link = socket.create_connection((url.hostname, url.port), CONNECT_TIMEOUT)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(CONNECT_TIMEOUT)
        link.connect(url.path)
    except BaseException:
        link.close()
        raise
    return link


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--connect", required=True, type=_url, metavar="URL", help="unix:///PATH or tcp://HOST:PORT")
    parser.add_argument("--framing", choices=sorted(HEADERS), default="stream32")
    parser.add_argument("--netns", metavar="NAME", help="make the device in this network namespace (ip netns)")
    parser.add_argument("--interface", default="tap0")
    parser.add_argument("--mac", type=_mac, help="such as 5a:94:ef:e4:0c:ee; default: the kernel's choice")
    parser.add_argument("--mtu", type=int, help="bytes; default: the kernel's choice")
    return parser.parse_args(arguments)


def _url(text: str) -> SplitResult:
    url = urlsplit(text)
    if url.scheme == "unix" and url.path and not url.netloc:
        return url
    if url.scheme == "tcp" and url.hostname and url.port:
        return url
    raise argparse.ArgumentTypeError(f"{text!r}: expected unix:///PATH or tcp://HOST:PORT")


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a unicast MAC such as 5a:94:ef:e4:0c:ee")
    return mac


if __name__ == "__main__":
    sys.exit(main())
