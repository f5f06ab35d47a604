"""What is told about the machine."""

from __future__ import annotations

import json

from bench import machine


def test_the_processor_is_named_where_the_system_names_it() -> None:
    assert machine.cpu_model("processor\t: 0\nmodel name\t: Some CPU 3000\nflags\t: fpu\n") == "Some CPU 3000"
    assert machine.cpu_model("processor\t: 0\n") == "unknown"


def test_the_description_can_be_written_and_summed_up() -> None:
    about = machine.describe()
    assert json.loads(json.dumps(about)) == about
    assert str(about["kernel"]) in machine.summary(about)
