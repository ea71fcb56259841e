from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from querypose.data import register_pose_dataset
from tests.data.conftest import datasets_root as datasets_root
from tests.data.toy_dataset import TOY_SKELETON, toy_annotation, toy_document, write_dataset
from tests.scripts import load_script, run_script


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script, which is in no package."""
    return load_script("tools/check_dataset.py")


def _register(name: str, root: Path, evaluator: str = "coco", **changes: object) -> None:
    register_pose_dataset(name, *write_dataset(root / name, toy_document(**changes)), TOY_SKELETON, evaluator)


def test_sound_data_set(tool: ModuleType, datasets_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _register("toy", datasets_root)
    assert tool.main(["--dataset", "toy", "--images", "pixels"]) == 0
    assert "toy: 0 errors, 0 warnings" in capsys.readouterr().out


def test_report_list_and_exit_code(
    tool: ModuleType, datasets_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [toy_annotation(id=number, keypoints=[]) for number in range(1, 6)]
    _register("wrong", datasets_root, annotations=[*wrong, toy_annotation(id=9, bbox=[-3, 5, 10, 10])])
    output = tmp_path / "out" / "problems.json"
    assert tool.main(["--dataset", "wrong", "--examples", "2", "--output", str(output)]) == 1
    report = capsys.readouterr().out
    assert "error: wrong number of values in keypoints: 5" in report
    assert "… and 3 more" in report
    assert "wrong: 5 errors, 1 warnings" in report
    problems = json.loads(output.read_text())
    assert [problem["id"] for problem in problems] == [f"annotation {number}" for number in (1, 2, 3, 4, 5, 9)]
    assert problems[0]["remedy"].startswith("it must be 9 numbers")


def test_warnings_count_where_one_asks_for_it(tool: ModuleType, datasets_root: Path) -> None:
    _register("toy", datasets_root, annotations=[toy_annotation(bbox=[-3, 5, 10, 10])])
    assert tool.main(["--dataset", "toy"]) == 0
    assert tool.main(["--dataset", "toy", "--strict"]) == 1


def test_test_split_must_be_fit_for_its_evaluation(
    tool: ModuleType, datasets_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _register("toy", datasets_root, evaluator="crowdpose")
    assert tool.main(["DATASETS.TEST", "['toy']"]) == 1
    report = capsys.readouterr().out
    assert "cannot be evaluated by the metric 'crowdpose': 1" in report
    assert "crowdIndex" in report


@pytest.mark.parametrize("arguments", [[], ["--dataset", "unknown"], ["--config-file", "gone.yaml"]])
def test_user_errors_have_another_exit_code(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("tools/check_dataset.py", *arguments) == 2
    assert capsys.readouterr().err.startswith("check_dataset.py: error: ")
