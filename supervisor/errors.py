"""Why the service does not start.

::

    MoorageError
    +-- StartError     the world refuses: an address in use, a state of a newer release (exit status 1)
    |   +-- ListenError    the system refuses an address to listen on
    +-- ConfigError    the operator asked for something impossible; names the setting (exit status 2)

And what a running service lacks::

    ChannelError
    +-- NoWorker       the system's limits leave no room for another worker; names the limit and what raises it
"""

import os

from proto.errors import ChannelError, MoorageError
from supervisor.limits import in_the_way


class StartError(MoorageError):
    """Something the service needs is not to be had."""


class ListenError(StartError):
    """An address cannot be listened on; `reason` is the system's."""

    def __init__(self, endpoint: object, error: OSError) -> None:
        self.endpoint = endpoint
        self.reason = (error.strerror or str(error)).lower()
        super().__init__(f"cannot listen on {endpoint}: {self.reason}")


class ConfigError(MoorageError):
    """A flag or a configuration key is wrong; the message names it and says what was expected."""


class NoWorker(ChannelError):
    """There cannot be another worker now."""

    def __init__(self, error: int) -> None:
        super().__init__(f"{os.strerror(error).lower()}: {in_the_way(error)}")
