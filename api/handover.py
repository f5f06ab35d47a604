"""Handing a request's connection over to the supervisor: from then on it is no HTTP any more, and none of our bytes.

For a route whose connection becomes something else (`api.connect`)::

    return hand_over(messages.AttachLink(...))

The message travels over ``handover.sock`` in the runtime directory with the connection's descriptor beside it, and with
what gunicorn has read of the connection behind the request (`first_bytes`). Once the supervisor has said yes the
connection is its own: nothing is answered here, and gunicorn goes on with a socket that nobody is at the other end of.
Where it says no, its reason is this request's answer as usual.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket

from flask import Flask, Response, current_app, request

from proto.codec import Message
from proto.errors import CodecError, RequestFailed
from proto.fdpass import FdChannel
from proto.messages import Failure

EXTENSION = "moorage.handover"
TIMEOUT = 5.0
"""Seconds for the supervisor's answer."""

log = logging.getLogger(__name__)


def set_up(app: Flask, path: str) -> None:
    """Let `hand_over` find the supervisor's socket in the app's requests."""
    app.extensions[EXTENSION] = path


def hand_over(message: Message) -> Response:
    """Give the current request's connection to the supervisor; `message` has a field `first_bytes`, filled in here.

    Raises RequestFailed when the supervisor does not want it.
    """
    if request.content_length or "Transfer-Encoding" in request.headers:
        raise RequestFailed.because(
            "bad-request", f"{request.path} takes no body: what follows the request is not HTTP"
        )
    connection = request.environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        raise RequestFailed.because("internal", "this server keeps its connections to itself")
    unreader = request.environ["wsgi.input"].reader.unreader
    _ask(dataclasses.replace(message, first_bytes=unreader.take_buffered()), connection)
    _leave(connection)
    return Response(status=204)  # into the void


def _ask(message: Message, connection: socket.socket) -> None:
    """Raises RequestFailed when the supervisor refuses, or cannot be reached."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(TIMEOUT)
        channel = FdChannel(sock)
        try:
            sock.connect(current_app.extensions[EXTENSION])
            channel.send(message, [connection.fileno()])
        except OSError as error:
            raise RequestFailed.because("unavailable", f"the supervisor cannot be reached: {error}") from error
        try:
            answer, _ = channel.recv()
        except (OSError, EOFError, CodecError) as error:
            log.warning("the supervisor did not say what became of a connection: %s", error)
            return  # it may have it, so nothing must be answered here
    if isinstance(answer, Failure):
        raise RequestFailed(answer)


def _leave(connection: socket.socket) -> None:
    """Put a socket in the connection's place whose other end is closed: what is answered there goes nowhere."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        os.dup2(ours.fileno(), connection.fileno(), inheritable=False)
