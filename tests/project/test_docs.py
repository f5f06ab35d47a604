"""The documents say what is there."""

from __future__ import annotations

import re
from pathlib import Path

from api import create_app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_route_of_the_api_is_described_and_every_described_route_exists(tmp_path: Path) -> None:
    served = {rule.rule.replace("<vm_id>", "ID") for rule in create_app(str(tmp_path)).url_map.iter_rules()}
    text = (ROOT / "docs" / "api.md").read_text()
    described = set(re.findall(r"[ `](/(?:v1/|services/|metrics|stats|cam|leases|connect|tunnel)[\w/.]*)", text))
    assert described == served


def test_links_between_documents_lead_somewhere() -> None:
    dead = {
        f"{document.name}: {target}"
        for document in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text())
        if not (document.parent / target).exists()
    }
    assert not dead


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets
