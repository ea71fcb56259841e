"""Every tool with inputs that are damaged at random; `python -m tests.tools.generated_inputs` runs many more."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.tools.generated_inputs import MAX_SECONDS, TOOLS, VALID_EXIT_CODES, check, run, time_limit

EXAMPLES = 5


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_uses_or_refuses_whatever_it_is_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "valid").mkdir()
    outcome = run(TOOLS[name], TOOLS[name].prepare(tmp_path / "valid")[0])
    assert outcome.exit_code == VALID_EXIT_CODES.get(name, 0), outcome
    for seed in range(EXAMPLES):
        check(name, seed, tmp_path / str(seed))


@pytest.mark.parametrize("name", ["train", "evaluate", "check_dataset", "demo", "visualize_data", "visualize_results"])
def test_no_tool_waits_for_a_pipe_in_place_of_an_image(tmp_path: Path, name: str) -> None:
    arguments, _ = TOOLS[name].prepare(tmp_path)
    for image in (tmp_path / "data").glob("*.png"):
        image.unlink()
        os.mkfifo(image)
    with time_limit(MAX_SECONDS):
        outcome = run(TOOLS[name], [str(tmp_path / "data") if word.endswith("0.png") else word for word in arguments])
    assert outcome.exit_code in (1, 2)
    assert "it is a pipe or device" in outcome.stderr or name == "check_dataset"  # which says it on stdout


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name of bytes that are no UTF-8, on a terminal that knows ASCII alone."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9"))
    folder.mkdir()
    for name in ("demo", "visualize_data", "check_dataset", "train"):
        (folder / name).mkdir()
        arguments, _ = TOOLS[name].prepare(folder / name)
        images = sorted((folder / name / "data").glob("*.png"))
        renamed = images[0].with_name("\udcff.png")
        images[0].rename(renamed)
        json_file = renamed.with_name("toy.json")
        json_file.write_text(json_file.read_text().replace("0.png", "\\udcff.png"))
        arguments = [str(renamed) if word == str(images[0]) else word for word in arguments]
        config_file = folder / name / "toy.yaml"
        config = json.loads(config_file.read_text())
        config_file.write_text(json.dumps({**config, "OUTPUT_DIR": str(tmp_path / "output")}))  # which must be text
        outcome = run(TOOLS[name], arguments, "ascii")
        assert outcome.exit_code == 0, outcome
