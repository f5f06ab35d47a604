"""Log lines as gvproxy's library logrus writes them.

To a file or a pipe ``time="2026-11-24T01:02:03Z" level=info msg="listening ..."``, so that who reads gvproxy's log by a
program finds in ours what it looks for; to a terminal ``INFO[0012] listening ...``, coloured, with the seconds since
the process started.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import datetime
from typing import Literal

LogFormat = Literal["text", "json", "logrus"]
"""Of the service's lines: for people, for programs, or as they are here."""
LEVELS = {"critical": "fatal"}
"""Where logrus has another name than `logging`."""
GRAY, CYAN, YELLOW, RED = 37, 36, 33, 31
"""Foregrounds, ECMA-48 8.3.117 (SGR)."""
COLOURS = {"debug": GRAY, "info": CYAN, "warning": YELLOW, "error": RED, "fatal": RED}
_PLAIN = re.compile(r"[A-Za-z0-9\-._/@^+]*")
"""What logrus does not quote."""


class LogrusFormatter(logging.Formatter):
    """One line on standard error for each record; what a traceback says is in the message."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        message = self._prefix + record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        level = record.levelname.lower()
        level = LEVELS.get(level, level)
        if sys.stderr.isatty():  # now: it may become a file
            seconds = int(record.relativeCreated / 1000)
            return f"\x1b[{COLOURS[level]}m{level[:4].upper()}\x1b[0m[{seconds:04}] {message:<44} "
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds").replace("+00:00", "Z")
        return f'time="{when}" level={level} msg={quoted(message)}'


def quoted(text: str) -> str:
    """A value as logrus writes it: as Go's ``%q`` where it is more than a word."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
