"""``moorage serve``, ``moorage gvproxy``, ``moorage agent``, ``moorage gvforwarder``, ``moorage capture``,
``moorage qemu-wrapper`` and ``moorage version``.

Started under the name ``gvproxy``, by a link for example, it is ``moorage gvproxy``; ``gvforwarder`` and
``qemu-wrapper`` likewise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import click

from cli.capture import DEFAULT_API
from cli.capture import run as run_capture
from cli.qemu_wrapper import run

GVPROXY = "supervisor.gvproxy"
GVFORWARDER = "gvforwarder"
QEMU_WRAPPER = "qemu-wrapper"


def main() -> NoReturn:
    """Be the command of the name we were started under."""
    name = Path(sys.argv[0]).stem
    if name == "gvproxy":
        become(GVPROXY, sys.argv[1:])
    if name == GVFORWARDER:
        become("agent", [GVFORWARDER, *sys.argv[1:]])
    moorage([name, *sys.argv[1:]] if name == QEMU_WRAPPER else None, "moorage")
    raise AssertionError("click ends the process")


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Run a module of ours in this process's place."""
    # -P: a folder of that name where the user stands is not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


class Handed(click.Command):
    """A command that reads its arguments itself."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["arguments"] = args
        return []


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def moorage() -> None:
    """User-mode networking for virtual machines."""


@moorage.command(cls=Handed, short_help="Run the service in the foreground.")
def serve(arguments: Sequence[str]) -> None:
    """Run the service in the foreground; `moorage serve --help` lists its flags."""
    become("supervisor", arguments)


@moorage.command(cls=Handed, short_help="Run the service as gvproxy, with its flags.")
def gvproxy(arguments: Sequence[str]) -> None:
    """Run the service as gvproxy; `moorage gvproxy -h` lists its flags."""
    become(GVPROXY, arguments)


@moorage.command(cls=Handed, short_help="Inside a VM: join a tap device to the host.")
def agent(arguments: Sequence[str]) -> None:
    """Inside a VM: join a tap device to the host; `moorage agent --help` lists its flags."""
    become("agent", arguments)


@moorage.command(cls=Handed, short_help="Inside a VM: the agent, with gvforwarder's flags.")
def gvforwarder(arguments: Sequence[str]) -> None:
    """Inside a VM: the agent as gvforwarder; `moorage gvforwarder -h` lists its flags."""
    become("agent", [GVFORWARDER, *arguments])


@moorage.command(
    QEMU_WRAPPER,
    context_settings={"allow_interspersed_args": False},  # behind SOCKET every word is the command's
    short_help="Start a QEMU whose network is a connected socket.",
)
@click.argument("sock", metavar="SOCKET", type=click.Path())
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def qemu_wrapper(sock: str, command: tuple[str, ...]) -> None:
    """Connect to the unix socket SOCKET and become COMMAND, which has the connection as descriptor 3: for a QEMU with
    `-netdev socket,id=n,fd=3`."""
    sys.exit(run(sock, list(command)))


@moorage.command(short_help="Show a VM's frames as pcapng.")
@click.argument("vm", metavar="VM")
@click.option(
    "-w", "--write", "path", metavar="FILE", type=click.Path(dir_okay=False), help="Default: standard output."
)
@click.option("--snaplen", metavar="BYTES", type=click.IntRange(0, 131072), default=0, help="Of each frame; 0: all.")
@click.option("--api", metavar="URL", default=DEFAULT_API, show_default=True, help="Or unix:///PATH.")
def capture(vm: str, path: str | None, snaplen: int, api: str) -> None:
    """Write the frames of VM, an id, a MAC or an address, as pcapng until Ctrl-C: for tcpdump, or for Wireshark, as in
    `moorage capture vm1 | wireshark -k -i -`."""
    sys.exit(run_capture(vm, path, snaplen, api))


@moorage.command()
def version() -> None:
    """Print the version."""
    print(f"moorage {metadata.version('moorage')}")
