"""A worker's log lines, on standard error: which VM, and in the form the service was asked for."""

from __future__ import annotations

import json
import logging
import sys

from proto.logrus import LogFormat, LogrusFormatter


class _Format(logging.Formatter):
    """Text or one JSON object a line, with the VM's id."""

    def __init__(self, vm_id: str, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s " + f"[{vm_id.replace('%', '%%')}] %(message)s")
        self._vm_id = vm_id
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        if not self._as_json:
            return super().format(record)
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "vm": self._vm_id,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(vm_id: str, level: str, log_format: LogFormat) -> None:
    """Set up this process's logging."""
    handler = logging.StreamHandler(sys.stderr)
    is_logrus = log_format == "logrus"
    handler.setFormatter(LogrusFormatter(f"{vm_id}: ") if is_logrus else _Format(vm_id, log_format == "json"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
