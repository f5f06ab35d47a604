"""What can go wrong between Moorage's processes.

::

    MoorageError
    +-- CodecError          bytes that are no message (a peer's fault: counted and logged, never fatal)
    +-- ChannelError
        +-- RequestTimeout  no answer before the deadline
        +-- RequestFailed   the answer was a `Failure`; a handler raises it to answer one
"""

from __future__ import annotations

from typing import Literal

from proto.messages import Failure

FailureCode = Literal["bad-request", "not-found", "conflict", "in-use", "unavailable", "internal"]


class MoorageError(Exception):
    """Anything that Moorage raises on purpose."""


class CodecError(MoorageError):
    """Bytes or a message that the codec refuses."""

    def __init__(self, reason: str, request_id: int = 0) -> None:
        super().__init__(reason)
        self.request_id = request_id
        """The request it came in, where that much could be read: the asker can be told. 0: not known."""


class ChannelError(MoorageError):
    """A request that got no good answer."""


class RequestTimeout(ChannelError):
    """No answer before the deadline."""


class RequestFailed(ChannelError):
    """The other side answered `Failure`, or could not be reached at all (code ``unavailable``)."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    @classmethod
    def because(cls, code: FailureCode, message: str, detail: str = "") -> RequestFailed:
        """The usual way to refuse a request."""
        return cls(Failure(code, message, detail))
