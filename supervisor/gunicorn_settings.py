"""gunicorn's settings for the API server, as gunicorn's ``-c python:`` reads them: names of this module.

The listening sockets are the supervisor's. They come by gunicorn's own way of handing sockets to a successor
($GUNICORN_PID, $GUNICORN_FD), in which it does not unlink a unix socket that is not its own to unlink.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from supervisor import logs

wsgi_app = "api:create_app()"
worker_class = "gthread"
workers = 1
threads = 8
graceful_timeout = 3
"""s for the requests under way when it is told to end."""
timeout = 30
keepalive = 10
"""s that a client's idle connection stays open, as long as gvproxy's."""
control_socket_disable = True
_level = os.environ.get("MOORAGE_LOG_LEVEL", "info")
logconfig_dict = {
    **logs.config(_level, os.environ.get("MOORAGE_LOG_FORMAT", "text")),
    "loggers": {
        # gunicorn's own news are of no use to who runs a service that has one part of gunicorn.
        "gunicorn.error": {"level": "DEBUG" if _level == "debug" else "WARNING", "propagate": True},
        "gunicorn.access": {"level": "WARNING"},
    },
}


def on_starting(_server: object) -> None:
    """End with the supervisor, however it ends: its successor needs the sockets' addresses."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != int(os.environ["GUNICORN_PID"]):
        sys.exit(1)  # it ended before we could ask
