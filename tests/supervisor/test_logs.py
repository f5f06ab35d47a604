import json
import logging
import logging.config
import sys

from supervisor import logs


def test_json_lines_carry_message_level_and_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, "it %s", ("fails\n",), sys.exc_info())
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("error", "a.b", "it fails\n")
    assert "ValueError: broken" in parsed["error"]


def test_both_formats_are_configurations_that_python_takes() -> None:
    for name in ("text", "json"):
        logging.config.DictConfigurator(logs.config("debug", name)).configure_formatter(
            logs.config("debug", name)["formatters"]["line"]
        )
