"""tools/analyze_results.py, as the command line runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.toy_pose import write_toy_config
from tests.scripts import run_script

TOOL = "tools/analyze_results.py"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_toy_config(tmp_path)


def results_of(config: Path, shift: float) -> Path:
    """The annotated poses of the toy dataset, moved by `shift` pixels."""
    (dataset,) = json.loads(config.read_text())["DATASETS"]["CUSTOM"]
    results = [
        {
            "image_id": person["image_id"],
            "category_id": 1,
            "keypoints": [value + shift * (index % 3 == 0) for index, value in enumerate(person["keypoints"])],
            "score": 0.5,
        }
        for person in json.loads(Path(dataset["json"]).read_text())["annotations"]
    ]
    path = config.with_name("results.json")
    path.write_text(json.dumps(results))
    return path


def test_tables_and_the_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, output = results_of(config, shift=0), config.with_name("errors.json")
    arguments = ["--dataset", "toy", "--config-file", str(config), "--results", str(results), "--output", str(output)]
    assert run_script(TOOL, *arguments) == 0
    shown = capsys.readouterr().out
    assert "6 images, 6 persons, 6 detections (20 an image): 6 near a person" in shown
    assert "AP 100.0, AR 100.0" in shown
    assert json.loads(output.read_text())["shares"] == {
        "good": 100, "jitter": 0, "inversion": 0, "swap": 0, "miss": 0,
    }  # fmt: skip


def test_no_detections_are_no_error(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = config.with_name("empty.json")
    empty.write_text("[]")
    assert run_script(TOOL, "--dataset", "toy", "--config-file", str(config), "--results", str(empty)) == 0
    assert "6 persons have no detection near them" in capsys.readouterr().out


def test_results_of_another_dataset_are_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(config, shift=0)
    results.write_text(results.read_text().replace('"image_id": 1', '"image_id": 785'))
    assert run_script(TOOL, "--dataset", "toy", "--config-file", str(config), "--results", str(results)) == 2
    assert "no image of this id" in capsys.readouterr().err
