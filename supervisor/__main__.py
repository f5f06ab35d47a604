"""``python -m supervisor``: reads the settings, runs the service until SIGTERM or SIGINT.

Exit status: 0 after a signal, 1 when the service could not start, 2 for a bad flag or configuration.
"""

from __future__ import annotations

import asyncio
import logging.config
import os
import signal
import sys
from pathlib import Path

import click

from supervisor import logs
from supervisor.attach.kinds import MAX_MTU
from supervisor.config import MIN_MTU, load
from supervisor.errors import ConfigError, StartError
from supervisor.limits import raise_open_files
from supervisor.service import Service


@click.command(name="moorage serve", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--listen",
    multiple=True,
    metavar="KIND=URL[,OPTION=VALUE]",
    help="Where VMs attach: qemu=unix:///PATH, qemu=tcp://HOST:PORT, hyperkit=unix:///PATH, vsock=vsock://:PORT, "
    "vsock=vsock://null:PORT/PATH, tap=tap:///NAME?netns=/PATH, stdio=, ... Behind a unix socket allow-uid=UID+UID: "
    "only processes of these users. network=NAME: the VMs' network. Repeatable. Default: qemu.sock in the runtime "
    "directory.",
)
@click.option(
    "--api",
    multiple=True,
    metavar="URL",
    help="Where the API listens: unix:///PATH or tcp://HOST:PORT. Repeatable. Default: api.sock in the runtime "
    "directory and tcp://127.0.0.1:7878.",
)
@click.option("--mtu", metavar="BYTES", help=f"The guests' MTU, {MIN_MTU} to {MAX_MTU}. Default: 1500.")
@click.option("--subnet", metavar="CIDR", help="The guests' IPv4 network. Default: 192.168.127.0/24.")
@click.option(
    "--network",
    multiple=True,
    metavar="NAME=CIDR",
    help="One more network, beside the default one. Repeatable. Its other settings are in the configuration file.",
)
@click.option(
    "--forward-source",
    metavar="WHOSE",
    help="Whose address a guest sees on forwarded ports: keep, the client's own, or gateway. Default: keep.",
)
@click.option("--capture-file", metavar="FILE", help="Gets the traffic of all VMs, as pcapng; emptied first.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with the names of these flags as keys.")
@click.option("--runtime-dir", metavar="DIR", help="Sockets. Default: $RUNTIME_DIRECTORY, else /run/moorage for root.")
@click.option("--state-dir", metavar="DIR", help="State. Default: $STATE_DIRECTORY, else /var/lib/moorage for root.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. Default: info.")
@click.option("--log-format", metavar="FORMAT", help="text or json. Default: text.")
def main(config: Path | None, **flags: str | tuple[str, ...] | None) -> None:
    """Run the service in the foreground."""
    given = {name.replace("_", "-"): value for name, value in flags.items() if value}
    try:
        settings = load(given, config)
        service = Service(settings)
        logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
        os.umask(0o077)
        raise_open_files()
        asyncio.run(_serve(service))
    except ConfigError as error:
        print(f"moorage: {error}", file=sys.stderr)
        sys.exit(2)
    except StartError as error:
        print(f"moorage: {error}", file=sys.stderr)
        sys.exit(1)


async def _serve(service: Service) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await service.run(stop, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main(prog_name="moorage serve")
