"""``python -m agent``, ``moorage agent``, ``moorage-agent.pyz``: a tap device joined to Moorage.

Started under the name ``gvforwarder``, or with that word first, it takes gvforwarder's flags (`agent.gvforwarder`).

The parts, and the loop that keeps them together: connect, bridge until the link ends, connect again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from agent import gvforwarder
from agent.bridge import Bridge, TapGone
from agent.configuration import Configuration
from agent.dhcp import Configurer, DhcpProgram, OwnDhcp
from agent.options import NONE, OWN, parse_options
from agent.resolv_conf import ResolvConf
from agent.tap import TapError, exists, mac_of, network_namespace, open_tap
from proto.framing import FramingError

log = logging.getLogger("agent")

MACHINE_ID = Path("/etc/machine-id")
ENDED, FAILED = 0, 1
"""Exit statuses; argparse's is 2."""


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal ends it; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [gvforwarder.NAME]:
        options = gvforwarder.parse_options(given[1:])
    elif Path(sys.argv[0]).stem == gvforwarder.NAME:
        options = gvforwarder.parse_options(given)
    else:
        options = parse_options(given)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    status = _run(options)
    while status == FAILED and options.is_patient:
        time.sleep(options.retry[0])
        status = _run(options)
    return status


def _run(options: argparse.Namespace) -> int:
    """With one device; the exit status."""
    with contextlib.ExitStack() as stack:
        try:
            with network_namespace(options.netns):
                found = next(filter(exists, options.stop_if_exist), None)
                if found is not None:
                    log.info("there is %s: nothing to do", found)
                    return ENDED
                tap, configurer = _make_device(options, stack)
        except (OSError, TapError) as error:
            log.error("cannot make the tap device %s: %s", options.interface, error)
            return FAILED
        try:
            _serve(tap, configurer, options)
        except TapGone as error:
            log.error("%s", error)
            return FAILED
    return ENDED


def _make_device(options: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[int, Configurer | None]:
    """The tap device's descriptor, and what configures it; `stack` will end both."""
    mac = options.mac
    if mac is None and not options.pre_existing:
        mac = _machine_mac(f"{options.netns or ''}/{options.interface}")
    tap = open_tap(options.interface, mac, options.mtu, options.pre_existing)
    stack.callback(os.close, tap)
    if options.dhcp == NONE:
        return tap, None
    if options.dhcp == OWN:
        resolv_conf = None if options.resolv_conf is None else ResolvConf(options.resolv_conf)
        configuration = Configuration(options.interface, options.mtu, resolv_conf)
        stack.callback(configuration.close)
        hostname = "" if options.netns else _hostname()
        configurer: Configurer = OwnDhcp(options.interface, mac_of(options.interface), hostname, configuration)
    else:
        configurer = DhcpProgram(options.dhcp, options.interface, options.netns)
    stack.callback(configurer.close)
    return tap, configurer


def _serve(tap: int, configurer: Configurer | None, options: argparse.Namespace) -> None:
    """Keep the tap joined to the host; ends by SystemExit, TapGone, or with an endpoint that does not last."""
    endpoint = options.connect
    first, longest = options.retry
    pause = first
    while True:
        began = math.inf
        try:
            with endpoint.connect() as link:
                began = time.monotonic()
                log.info("connected to %s", endpoint.url)
                if configurer is not None:
                    configurer.link_up()
                last = Bridge(tap, link, options.framing or endpoint.framing, configurer).run()
            trouble = _last_words(last)
        except (OSError, FramingError) as error:
            trouble = str(error)
        if not endpoint.lasts:
            log.info("the link ended: %s", trouble)
            return
        # A link that is closed as soon as it opens is a failure too.
        pause = first if time.monotonic() - began > longest else pause
        log.warning("%s: %s; next try in %.1f s", endpoint.url, trouble, pause)
        time.sleep(pause)
        pause = min(pause * 2, longest)


def _last_words(data: bytes) -> str:
    """Why the other end closed the link, if it said so: an HTTP server that knows no /connect answers."""
    if data.startswith(b"HTTP/"):
        status = data.partition(b"\r\n")[0].decode("ascii", "replace")
        return f"the host answered {status!r}: it gives no link here"
    return "the link was closed by the other end"


def _machine_mac(salt: str) -> bytes | None:
    """A locally administered MAC that this machine has at every start, so that it keeps its address.

    None where the machine has no id; the kernel chooses one then. The id itself stays secret (machine-id(5)).
    """
    try:
        machine_id = MACHINE_ID.read_bytes().strip()
    except OSError:
        return None
    if not machine_id:
        return None
    digest = hashlib.sha256(b"moorage-agent " + machine_id + salt.encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def _hostname() -> str:
    """What the guest calls itself, where that tells it from others."""
    name = socket.gethostname().partition(".")[0]
    return "" if name in ("localhost", "(none)") else name


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # what was begun is undone in peace
        signal.signal(number, signal.SIG_IGN)
    sys.exit(ENDED)


if __name__ == "__main__":
    sys.exit(main())
