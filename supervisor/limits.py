"""What the system lets the service use."""

from __future__ import annotations

import contextlib
import resource

OPEN_FILES = 262_144
"""Descriptors: forwards and links here, guest flows in the workers, which inherit the limit."""


def raise_open_files() -> None:
    """As many descriptors as are allowed; a privileged process allows itself more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
            return
    limit = hard if hard != resource.RLIM_INFINITY else OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
