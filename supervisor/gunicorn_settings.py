"""gunicorn's settings for the API server, as gunicorn's ``-c python:`` reads them: names of this module.

The listening sockets are the supervisor's, whose descriptors $MOORAGE_API_SOCKETS lists. $GUNICORN_PID, which is
gunicorn's own way to say that it is another's successor, keeps it from unlinking what is not its own to unlink.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from typing import Any

from supervisor import logs
from supervisor.api_sockets import ListeningSocket

wsgi_app = "api:create_app()"
worker_class = "gthread"
workers = 1
threads = 32
graceful_timeout = 3
"""s for the requests under way when it is told to end."""
timeout = 30
keepalive = 10
"""s that a client's idle connection stays open, as long as gvproxy's."""
control_socket_disable = True
permit_unconventional_http_method = True
"""Go takes any word."""
_level = os.environ.get("MOORAGE_LOG_LEVEL", "info")
logconfig_dict = {
    **logs.config(_level, os.environ.get("MOORAGE_LOG_FORMAT", "text")),
    "loggers": {
        # gunicorn's own news are of no use to who runs a service that has one part of gunicorn.
        "gunicorn.error": {"level": "DEBUG" if _level == "debug" else "WARNING", "propagate": True},
        "gunicorn.access": {"level": "WARNING"},
    },
}


def on_starting(server: Any) -> None:
    """Listen on the supervisor's sockets, and end with it, however it ends: its successor needs their addresses."""
    server.LISTENERS = [ListeningSocket(fileno=int(fd)) for fd in os.environ["MOORAGE_API_SOCKETS"].split(",")]
    for listener in server.LISTENERS:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != int(os.environ["GUNICORN_PID"]):
        sys.exit(1)  # it ended before we could ask
