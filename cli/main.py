"""``moorage serve`` and ``moorage version``."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import click


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
    # -P: a folder named `supervisor` where the user stands is not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "supervisor", *arguments])


@main.command()
def version() -> None:
    """Print the version."""
    print(f"moorage {metadata.version('moorage')}")
