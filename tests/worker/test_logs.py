import json
import logging
from collections.abc import Iterator

import pytest

from worker import logs


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers, root.level = handlers, level


def test_text_lines_name_the_vm(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("vm-%d", "info", "text")
    logging.getLogger("worker.x").info("%s frames", 3)
    logging.getLogger("worker.x").debug("unseen")
    assert capfd.readouterr().err.endswith(" INFO worker.x [vm-%d] 3 frames\n")


def test_json_lines_are_one_object_each(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("vm-1", "debug", "json")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("worker.x").exception('a "quoted"\nline')
    (line,) = capfd.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["vm"], entry["message"]) == ("error", "vm-1", 'a "quoted"\nline')
    assert "ValueError: bad" in entry["exception"]
