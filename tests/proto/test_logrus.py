"""gvproxy's log lines."""

import logging
import re
import sys

import pytest

from proto.logrus import LogrusFormatter


def record(level: int, message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("supervisor.service", level, __file__, 1, message, args, None)


@pytest.mark.parametrize(
    ("level", "text", "line"),
    [
        (logging.INFO, "gvproxy version v1", 'level=info msg="gvproxy version v1"'),
        (logging.WARNING, "stopping", "level=warning msg=stopping"),
        (logging.CRITICAL, '"/tmp/s" already exists', r'level=fatal msg="\"/tmp/s\" already exists"'),
        (logging.ERROR, "two\nlines", r'level=error msg="two\nlines"'),
    ],
)
def test_a_line_has_time_level_and_message(level: int, text: str, line: str) -> None:
    time, _, rest = LogrusFormatter().format(record(level, "%s", text)).partition(" ")
    assert re.fullmatch(r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)"', time)
    assert rest == line


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.DEBUG, f"\x1b[37mDEBU\x1b[0m[0012] {'stopping':44} "),
        (logging.INFO, f"\x1b[36mINFO\x1b[0m[0012] {'stopping':44} "),
        (logging.WARNING, f"\x1b[33mWARN\x1b[0m[0012] {'stopping':44} "),
        (logging.ERROR, f"\x1b[31mERRO\x1b[0m[0012] {'stopping':44} "),
        (logging.CRITICAL, f"\x1b[31mFATA\x1b[0m[0012] {'stopping':44} "),
    ],
)
def test_a_terminal_gets_colour_and_the_seconds_since_the_start(
    monkeypatch: pytest.MonkeyPatch, level: int, line: str
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    written = record(level, "stopping")
    written.relativeCreated = 12_900
    assert LogrusFormatter().format(written) == line


def test_a_traceback_stays_on_the_line() -> None:
    failed = record(logging.ERROR, "failed")
    try:
        raise ValueError("why")
    except ValueError:
        failed.exc_info = sys.exc_info()
    line = LogrusFormatter("vm1: ").format(failed)
    assert "\n" not in line
    assert 'msg="vm1: failed\\nTraceback' in line
    assert "ValueError: why" in line
