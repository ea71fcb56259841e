"""A part of the kills of `tests.engine.kill_harness`; all of them: python -m tests.engine.kill_harness ."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_runs_that_are_killed_at_their_files_come_to_the_same_end() -> None:
    """In a process of its own: what other tests leave in this one would live on in the processes that it forks."""
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-m", "tests.engine.kill_harness", "--every", "26", "--second-at", "1"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    counts = re.findall(r"(\d+) operations, (\d+) runs killed and resumed", result.stdout)
    assert len(counts) == 2, "checkpoints written at once, and late"
    assert all(int(operations) > 120 and int(runs) > 10 for operations, runs in counts)
