from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from querypose.skeleton import COCO_SKELETON
from tests.evaluation.generated import generate, perfect_results

TOOL = Path(__file__).resolve().parents[2] / "tools/visualize_results.py"
IMAGES = 4


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A dataset of generated poses on gray images, in a config, with results and metrics."""
    ground_truth, _ = generate(COCO_SKELETON, 0, num_images=IMAGES)
    for image in ground_truth["images"]:
        image |= {"file_name": f"{image['id']:06d}.jpg", "width": 640, "height": 480}
        Image.new("RGB", (640, 480), (90, 90, 90)).save(tmp_path / image["file_name"])
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    (tmp_path / "res.json").write_text(json.dumps(perfect_results(ground_truth)))
    rows = [{"iteration": iteration, "total_loss": 2.0} for iteration in (0, 20)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    dataset = {"name": "drawn", "json": str(tmp_path / "gt.json"), "images": str(tmp_path), "skeleton": "coco"}
    (tmp_path / "config.yaml").write_text(json.dumps({"DATASETS": {"CUSTOM": [dataset]}}))
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ["--results", str(folder / "res.json"), "--output", str(folder / "out")]
    command = [sys.executable, str(TOOL), "--config-file", str(folder / "config.yaml"), *places, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_pictures_and_curves(run_folder: Path) -> None:
    done = run(run_folder, "--dataset", "drawn", "--metrics", str(run_folder / "metrics.json"))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (run_folder / "out").iterdir()}
    ids = [image["id"] for image in json.loads((run_folder / "gt.json").read_text())["images"]]
    assert names == {"overview.jpg", "curves.png", *(f"{image_id:06d}.jpg" for image_id in ids)}
    with Image.open(run_folder / "out" / f"{ids[0]:06d}.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 2 * 640
    left, right = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    assert all((np.abs(side - 90).max(axis=2) > 100).any() for side in (left, right))  # poses on both


def test_fewer_pictures_and_errors(run_folder: Path) -> None:
    assert run(run_folder, "--dataset", "drawn", "--num", "2").returncode == 0
    assert len(list((run_folder / "out").iterdir())) == 3
    unknown = run(run_folder, "--dataset", "nothing")
    assert unknown.returncode == 2
    assert "There is no pose dataset 'nothing'" in unknown.stderr
