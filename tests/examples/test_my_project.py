"""examples/my_project does what its README says, and needs nothing of `querypose/` that is not there for everybody."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import ROOT

EXAMPLE = ROOT / "examples" / "my_project"
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"^```bash\n(.*?)^```", (EXAMPLE / "README.md").read_text(), flags=re.M | re.S)
    for command in block.replace("\\\n", " ").splitlines()
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Drawn arrows and trained models of the commands before are those of the next ones, as for a reader."""
    folder = tmp_path_factory.mktemp("my_project")
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": python_path, "DETECTRON2_DATASETS": str(folder), "FOLDER": str(folder)}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[5:]).replace("examples/my_project/", ""))
def test_command_of_the_readme(command: list[str], environment: dict[str, str]) -> None:
    python, *arguments = command
    assert python == "python"
    folder = Path(environment["FOLDER"])
    arguments = [argument.replace("output/my_project", str(folder)) for argument in arguments]
    config = (ROOT / arguments[arguments.index("--config-file") + 1]).stem
    if "OUTPUT_DIR" not in arguments:
        arguments += ["OUTPUT_DIR", str(folder / config)]
    run = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    output_dir = Path(arguments[arguments.index("OUTPUT_DIR") + 1])
    if "--eval-only" in arguments:
        return
    rows = [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]
    losses = [row["total_loss"] for row in rows if "total_loss" in row]
    assert losses[-1] < losses[0]
    assert any("pck/PCK20" in row for row in rows)
    if config == "query_pose":
        assert any("loss_limb_length" in row for row in rows)
        assert any("weight_norm/backbone" in row for row in rows)
    if output_dir.name == "dense_300":
        assert rows[-1]["pck/PCK20"] > 40  # of 20 iterations it is below 10
