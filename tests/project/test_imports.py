"""Imports go only where the design's table says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "proto": set[str](),
    "supervisor": {"proto"},
    "worker": {"proto"},
    "api": {"proto"},
    "cli": {"proto"},
    "agent": {"proto"},
}
AGENT_MAY_USE_OF_PROTO = {"proto.framing", "proto.go_flags"}
SANS_IO = ("worker/wire", "worker/tcp", "worker/ip", "worker/link")
IO_MODULES = {"socket", "asyncio", "zmq", "time", "os", "random", "select", "selectors"}


def sources(folder: str) -> Iterator[Path]:
    """Python and Cython files under a folder."""
    for pattern in ("*.py", "*.pyx", "*.pxd", "*.pyi"):
        yield from (ROOT / folder).rglob(pattern)


def imported_modules(path: Path) -> set[str]:
    """Dotted names of the modules a file imports or cimports."""
    text = path.read_text()
    if path.suffix in (".pyx", ".pxd"):
        names = re.findall(r"^\s*from\s+([\w.]+)\s+c?import\b|^\s*c?import\s+([\w.]+)", text, re.MULTILINE)
        return {name for pair in names for name in pair if name}
    found: set[str] = set()
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; house style is absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_the_table_allows(folder: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imported_modules(path)
        if (top := name.partition(".")[0]) in MAY_IMPORT and top != folder and top not in MAY_IMPORT[folder]
    }
    assert not wrong


def test_the_agent_takes_of_ours_only_what_is_built_into_it() -> None:
    ours = {name for path in sources("agent") for name in imported_modules(path) if name.startswith("proto")}
    assert ours <= AGENT_MAY_USE_OF_PROTO


@pytest.mark.parametrize("folder", SANS_IO)
def test_protocol_modules_do_no_io(folder: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imported_modules(path)
        if name.partition(".")[0] in IO_MODULES
    }
    assert not wrong


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_our_package_names_are_ours_alone(package: str) -> None:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")
    assert set(metadata.packages_distributions().get(package, ["moorage"])) == {"moorage"}
