"""SHaRPose on real photos of COCO and MPII, by the command line: a training step and an evaluation with its configs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.scripts import load_script
from tests.tools.test_train_net import in_process, rows

__all__ = ["in_process"]  # a fixture

REDUCED = {
    "MODEL.DEVICE": "cpu", "MODEL.SHARPOSE.DIM": 24, "MODEL.SHARPOSE.NUM_HEADS": 2, "MODEL.SHARPOSE.DEPTH": 2,
    "SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 1, "SOLVER.STEPS": [], "DATALOADER.NUM_WORKERS": 0, "SEED": 1,
    "LOG_PERIOD": 1,
}  # fmt: skip
"""What makes a step take a second: the sizes of crops and heat maps stay the config's."""


def arguments(config: str, output: Path, json_file: Path, images: Path, skeleton: str, evaluator: str) -> list[str]:
    entry = {"json": str(json_file), "images": str(images), "skeleton": skeleton, "evaluator": evaluator}
    datasets = {"CUSTOM": [{"name": "samples", **entry}], "TRAIN": ["samples"], "TEST": ["samples"]}
    values = {**REDUCED, **{f"DATASETS.{name}": value for name, value in datasets.items()}, "OUTPUT_DIR": output}
    return [
        "--config-file",
        f"configs/sharpose/{config}.yaml",
        *(str(word) for pair in values.items() for word in pair),
    ]


def test_coco_with_annotated_and_with_detected_boxes(
    shared_data: Path, tmp_path: Path, in_process: Callable[..., int]
) -> None:
    folder = shared_data / "samples/coco"
    given = arguments("sharpose_base_256x192", tmp_path, folder / "test_coco.json", folder, "coco", "coco")
    assert in_process(*given) == 0
    scalars = {name: value for row in rows(tmp_path) for name, value in row.items()}
    assert math.isfinite(scalars["total_loss"])
    assert 0 <= scalars["keypoints/AP"] <= 100
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    boxes = ["DATASETS.PERSON_BOXES", str([str(folder / "test_coco_det_AP_H_56.json")])]
    assert in_process("--eval-only", *given, *weights, *boxes) == 0
    poses = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert {pose["image_id"] for pose in poses} == {785, 40083, 196141, 197388}
    assert 14 < len(poses) <= 118, "of all boxes, less repetitions"


def test_mpii_by_pckh(shared_data: Path, tmp_path: Path, in_process: Callable[..., int]) -> None:
    mpii = tmp_path / "mpii"
    (mpii / "images").mkdir(parents=True)
    for photo in (shared_data / "samples/mpii").glob("*.jpg"):
        shutil.copy(photo, mpii / "images")
    (tmp_path / "none.txt").write_text("no_photo.jpg\n")
    source = shared_data / "samples/mpii/test_mpii.json"
    prepare = load_script("datasets/prepare_mpii.py").main
    assert prepare([str(source), "--folder", str(mpii), "--val-images", str(tmp_path / "none.txt")]) == 0
    given = arguments(
        "sharpose_mpii_base_256x256", tmp_path / "out", mpii / "train.json", mpii / "images", "mpii", "pckh"
    )
    assert in_process(*given, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1") == 0
    *_, last = rows(tmp_path / "out")
    assert 0 <= last["keypoints/PCKh"] <= 100
    assert len(json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())) == 5
    assert (tmp_path / "out/model_best.pth").is_file(), "by PCKh, which the dataset is scored by"
