"""``moorage serve``, ``moorage agent``, ``moorage qemu-wrapper`` and ``moorage version``."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import NoReturn

import click

from cli.qemu_wrapper import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """User-mode networking for virtual machines."""


@main.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Run the service in the foreground.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Run the service in the foreground; `moorage serve --help` lists its flags."""
    _become("supervisor", arguments)


@main.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Inside a VM: join a tap device to the host.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def agent(arguments: tuple[str, ...]) -> None:
    """Inside a VM: join a tap device to the host; `moorage agent --help` lists its flags."""
    _become("agent", arguments)


@main.command(
    "qemu-wrapper",
    context_settings={"ignore_unknown_options": True},
    short_help="Start a QEMU whose network is a connected socket.",
)
@click.argument("sock", metavar="SOCKET", type=click.Path())
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def qemu_wrapper(sock: str, command: tuple[str, ...]) -> None:
    """Connect to the unix socket SOCKET and become COMMAND, which has the connection as descriptor 3: for a QEMU with
    `-netdev socket,id=n,fd=3`."""
    sys.exit(run(sock, list(command)))


def _become(package: str, arguments: tuple[str, ...]) -> NoReturn:
    # -P: a folder of that name where the user stands is not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", package, *arguments])


@main.command()
def version() -> None:
    """Print the version."""
    print(f"moorage {metadata.version('moorage')}")
