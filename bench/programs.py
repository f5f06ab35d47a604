"""The C programs of the benchmark, compiled when it starts.

C, so that what is measured is the gateway: neither the bridge to the guest nor what makes the load waits for Python.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
LIBSLIRP_HEADERS = Path("/usr/include/slirp")
FLAGS = {
    "tapbridge": ["-O2", "-pthread"],
    "load": ["-O2", "-pthread"],
    "ceiling": ["-O3", "-march=native"],
    "slirpstream": ["-O2", f"-I{LIBSLIRP_HEADERS}"],
}
LIBRARIES = {"slirpstream": ["-lslirp"]}


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the programs are."""

    directory: Path

    def path(self, name: str) -> str:
        """Of a program by its source's name; compiled on first use. Raises CalledProcessError."""
        program = self.directory / name
        if not program.exists():
            source = SOURCES / f"{name}.c"
            subprocess.run(["gcc", *FLAGS[name], "-o", program, source, *LIBRARIES.get(name, [])], check=True)
        return str(program)
