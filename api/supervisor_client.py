"""How a request handler asks the supervisor.

One `SupervisorClient` lives in each application; `ask` finds it through Flask. Everything the API knows comes from
here: it keeps no state of its own.
"""

from __future__ import annotations

from typing import TypeVar

from flask import Flask, current_app

from proto.channels import BlockingRequester
from proto.codec import Message
from proto.errors import MoorageError

Answer = TypeVar("Answer")

EXTENSION = "moorage.supervisor"
TIMEOUT = 5.0
"""Seconds until a request is given up with 503."""


class UnexpectedAnswer(MoorageError):
    """The supervisor answered with another class than the request's: a fault of ours."""


class SupervisorClient:
    """Typed questions over the control socket; safe to share between gunicorn's threads."""

    def __init__(self, endpoint: str) -> None:
        self._requester = BlockingRequester(endpoint)

    def attach(self, app: Flask) -> None:
        """Make `ask` use this client in the app's requests."""
        app.extensions[EXTENSION] = self

    def ask(self, question: Message, expected: type[Answer]) -> Answer:
        """The supervisor's answer. Raises what `BlockingRequester.request` does, and UnexpectedAnswer."""
        answer = self._requester.request(question, TIMEOUT)
        if not isinstance(answer, expected):
            raise UnexpectedAnswer(f"{type(question).__name__} was answered by {type(answer).__name__}")
        return answer

    def close(self) -> None:
        """Close the sockets; no request may be under way."""
        self._requester.close()


def ask(question: Message, expected: type[Answer]) -> Answer:
    """Ask on behalf of the current HTTP request; errors become HTTP errors in `api.app`."""
    client: SupervisorClient = current_app.extensions[EXTENSION]
    return client.ask(question, expected)
