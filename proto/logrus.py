"""Log lines as gvproxy's library logrus writes them: ``time="2026-11-24T01:02:03Z" level=info msg="listening ..."``.

Who reads gvproxy's log file by a program finds in ours what it looks for.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from typing import Literal

LogFormat = Literal["text", "json", "logrus"]
"""Of the service's lines: for people, for programs, or as they are here."""
LEVELS = {"critical": "fatal"}
"""Where logrus has another name than `logging`."""
_PLAIN = re.compile(r"[A-Za-z0-9\-._/@^+]*")
"""What logrus does not quote."""


class LogrusFormatter(logging.Formatter):
    """One line for each record; what a traceback says is in the message."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds").replace("+00:00", "Z")
        message = self._prefix + record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        level = record.levelname.lower()
        return f'time="{when}" level={LEVELS.get(level, level)} msg={quoted(message)}'


def quoted(text: str) -> str:
    """A value as logrus writes it: as Go's ``%q`` where it is more than a word."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
