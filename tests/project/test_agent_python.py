"""The agent runs where there is nothing but an old Python: 3.9, and its standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.test_imports import ROOT, imported_modules, sources

OLDEST = (3, 9)
OF_PROTO = ("__init__.py", "framing.py", "go_flags.py")
PARTS = [*sorted(sources("agent")), *(ROOT / "proto" / name for name in OF_PROTO)]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_syntax_is_not_newer(path: Path) -> None:
    ast.parse(path.read_text(), str(path), feature_version=OLDEST)


def test_nothing_is_used_that_a_newer_version_added() -> None:
    oldest = ".".join(map(str, OLDEST))
    checked = subprocess.run(
        [
            Path(sys.executable).with_name("vermin"),
            f"--target={oldest}-",
            "--no-tips",
            "--violations",
            *map(str, PARTS),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_it_needs_the_standard_library_alone() -> None:
    foreign = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in PARTS
        for name in imported_modules(path)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names and top not in ("agent", "proto")
    }
    assert not foreign
