"""Why the service does not start.

::

    MoorageError
    +-- StartError     the world refuses: an address in use, a state of a newer release (exit status 1)
    +-- ConfigError    the operator asked for something impossible; names the setting (exit status 2)
"""

from proto.errors import MoorageError


class StartError(MoorageError):
    """Something the service needs is not to be had."""


class ConfigError(MoorageError):
    """A flag or a configuration key is wrong; the message names it and says what was expected."""
