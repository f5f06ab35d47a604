"""Instructions of the engine for each segment, counted by valgrind: on every machine the same for one compiler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.perf.ceilings import DOWN, INSTRUCTIONS, UP, hold

ROOT = Path(__file__).parents[2]
SEGMENTS = 4000
LEAST = 200
"""Instructions that a segment takes at least: fewer were not all counted."""
TURN = "*loop_run_until"
"""The function in which instructions count, with all it calls; what Python does around it does not."""


@pytest.mark.system
@pytest.mark.alone
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="not installed: valgrind (make packages)")
@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_segment_takes_few_instructions(direction: str, tmp_path: Path) -> None:
    profile, way = tmp_path / "callgrind", "down" if direction == DOWN else "up"
    valgrind = ["valgrind", "--tool=callgrind", f"--toggle-collect={TURN}", f"--callgrind-out-file={profile}"]
    drive = [sys.executable, "-m", "tests.perf.drive", way, "1500", str(SEGMENTS)]
    done = subprocess.run([*valgrind, *drive], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    counters = json.loads(done.stdout)
    assert counters["tcp.tx_segments" if direction == DOWN else "tcp.rx_segments"] >= SEGMENTS
    assert counters["tcp.retransmits"] == 0
    total = re.search(r"^totals: (\d+)$", profile.read_text(), re.MULTILINE)
    assert total is not None
    count = int(total[1]) / SEGMENTS
    assert count > LEAST, f"{TURN} is no function of the engine any more"
    hold(INSTRUCTIONS.format(direction, 1500), count)
