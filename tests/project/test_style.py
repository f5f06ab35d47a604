"""The parts of the house style that a linter does not know."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("proto", "supervisor", "worker", "api", "cli", "agent", "tests", "bench")
MAX_MODULE_LINES = 500
SOURCES = sorted(
    path
    for folder in FOLDERS
    for path in chain.from_iterable((ROOT / folder).rglob(pattern) for pattern in ("*.py", "*.pyx", "*.pxd"))
)
PYTHON = [path for path in SOURCES if path.suffix == ".py"]
# The first lines of a Cython file, where its docstring or, in a .pxd, its heading comment stands.
HEADING_LINES = 40


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_modules_stay_small() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_MODULE_LINES}


def test_modules_say_what_they_are() -> None:
    described = [path for path in PYTHON if path.name != "__init__.py" and path.relative_to(ROOT).parts[0] != "tests"]
    assert described
    assert not {name(path) for path in described if not ast.get_docstring(ast.parse(path.read_text()))}


def test_wire_formats_name_their_rfc() -> None:
    silent = {
        name(path)
        for path in SOURCES
        if path.parent == ROOT / "worker" / "wire" and path.suffix != ".py" and not path.name.startswith("_")
        if not re.search(r"RFC \d+|IEEE 802", "\n".join(path.read_text().splitlines()[:HEADING_LINES]))
    }
    assert not silent


def test_packages_only_re_export() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    wrong = {
        f"{name(path)}:{node.lineno}"
        for path in PYTHON
        if path.name == "__init__.py"
        for node in ast.parse(path.read_text()).body
        if not isinstance(node, allowed)
    }
    assert not wrong


def test_no_comment_promises_to_do_it_later() -> None:
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X"))
    assert not {name(path) for path in SOURCES if re.search(rf"\b({marks})\b(?!\(#\d+\))", path.read_text())}
