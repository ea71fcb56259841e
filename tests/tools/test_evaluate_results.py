from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from querypose.evaluation import format_metrics
from querypose.skeleton import COCO_SKELETON
from tests.evaluation.generated import evaluate, generate

TOOL = Path(__file__).resolve().parents[2] / "tools/evaluate_results.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=600)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    ground_truth, results = generate(COCO_SKELETON, 0)
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    (tmp_path / "res.json").write_text(json.dumps(results))
    return tmp_path / "gt.json", tmp_path / "res.json"


@pytest.mark.parametrize("metric", ["coco", "crowdpose"])
def test_prints_the_table(files: tuple[Path, Path], metric: str) -> None:
    annotations, results = files
    done = run("--annotations", str(annotations), "--results", str(results), "--skeleton", "coco", "--metric", metric)
    metrics = evaluate(json.loads(annotations.read_text()), json.loads(results.read_text()), COCO_SKELETON, metric)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == format_metrics(metrics).splitlines()


def test_a_skeleton_from_yaml(files: tuple[Path, Path], tmp_path: Path) -> None:
    annotations, results = files
    names = [f"k{index}" for index in range(17)]
    skeleton = {"name": "mine", "keypoints": names, "sigmas": [0.2] * 17}
    (tmp_path / "mine.yaml").write_text(json.dumps({"DATASETS": {"SKELETONS": [skeleton]}}))
    arguments = ["--annotations", str(annotations), "--results", str(results), "--skeleton", "mine"]
    done = run(*arguments, "--config-file", str(tmp_path / "mine.yaml"))
    assert done.returncode == 0, done.stderr
    without = run(*arguments)
    assert without.returncode == 2
    assert "There is no skeleton 'mine'; known: coco, crowdpose" in without.stderr


def test_user_errors_are_one_line(files: tuple[Path, Path], tmp_path: Path) -> None:
    annotations, results = files
    done = run("--annotations", str(annotations), "--results", str(results), "--skeleton", "crowdpose")
    assert done.returncode == 2
    assert "it must be 42 numbers" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("--annotations", str(tmp_path / "none.json"), "--results", str(results), "--skeleton", "coco")
    assert done.returncode == 2
    assert "there is no annotation file" in done.stderr
    done = run("--annotations", str(annotations), "--results", str(results), "--skeleton", "coco", "--metric", "pck")
    assert done.returncode == 2
    assert "--metric is 'pck', but the registered metrics are coco, crowdpose" in done.stderr
    (tmp_path / "broken.json").write_text("[{")
    done = run("--annotations", str(annotations), "--results", str(tmp_path / "broken.json"), "--skeleton", "coco")
    assert done.returncode == 2
    assert "broken.json: it is not valid json" in done.stderr
