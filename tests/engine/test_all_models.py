"""Every meta-architecture from a config file to metrics: killed and resumed, and evaluated by two processes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from querypose import d2
from querypose.config import load_config
from querypose.d2 import CfgNode, comm
from querypose.data import register_custom_datasets
from querypose.engine import PoseTrainer
from tests.engine.toy_pose import HEIGHT, WIDTH, write_toy_dataset
from tests.tiny import ARCHITECTURES, SHARPOSE, TINY_MODEL

FINISHING = "[{'name': 'rescore', 'threshold': 0.2}, {'name': 'oks_nms', 'threshold': 0.9}]"
PERSONS = (1, 4, 1)
"""Of each image: two processes share the crops of the second one."""


def config(folder: Path, *overrides: Any) -> CfgNode:
    """Of three small images with `PERSONS`."""
    json_file = folder / "data" / "toy.json"
    if not json_file.is_file():
        document = json.loads(write_toy_dataset(folder / "data", len(PERSONS)).read_text())
        annotations: list[dict[str, Any]] = []
        for annotation, count in zip(document["annotations"], PERSONS, strict=True):
            for _ in range(count):
                annotation = {**annotation, "id": len(annotations) + 1}
                points = annotation["keypoints"]
                annotation["keypoints"] = [
                    0.97 * value if place % 3 < 2 else value for place, value in enumerate(points)
                ]
                annotations.append(annotation)
        json_file.write_text(json.dumps({**document, "annotations": annotations}))
    custom = {"name": "toy", "json": str(json_file), "images": str(json_file.parent), "skeleton": "coco"}
    settings = {
        "OUTPUT_DIR": folder / "output", "SEED": 1, "LOG_PERIOD": 2, "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.CUSTOM": [custom], "DATASETS.TRAIN": ["toy"], "DATASETS.TEST": ["toy"],
        "INPUT.MIN_SIZE_TRAIN": [64], "INPUT.MIN_SIZE_TEST": 64, "INPUT.CROP.PROBABILITY": 0.0,
        "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 5, "SOLVER.STEPS": [4], "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 2, "SOLVER.ACCUMULATION_STEPS": 2, "SOLVER.BASE_LR": 1e-3,
        "TEST.FINISHING": FINISHING,
    }  # fmt: skip
    pairs = [word for name, value in settings.items() for word in (name, str(value))]
    cfg = load_config(None, [*TINY_MODEL, *pairs, *map(str, overrides)])
    register_custom_datasets(cfg)
    return cfg


class Killed(PoseTrainer):
    """Dies when it is about to begin the fourth iteration."""

    def before_step(self) -> None:
        super().before_step()
        if self.iter == 3:
            self.checkpointer.wait()
            raise KeyboardInterrupt


def trained(cfg: CfgNode, kind: type[PoseTrainer] = PoseTrainer, *, resume: bool = False) -> dict[str, Any]:
    """The last checkpoint."""
    d2.seed_all_rng(cfg.SEED)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=resume)
    if kind is Killed:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        return {}
    trainer.train()
    assert trainer.start_iter == (2 if resume else 0)
    return torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_killed_run_goes_on_bit_by_bit(architecture: str, tmp_path: Path) -> None:
    whole = trained(config(tmp_path / "whole", *ARCHITECTURES[architecture]))
    cfg = config(tmp_path / "killed", *ARCHITECTURES[architecture])
    trained(cfg, Killed)
    goes_on = trained(cfg, resume=True)
    torch.testing.assert_close(goes_on["model"], whole["model"], rtol=0, atol=0)
    optimizers = [checkpoint["trainer"]["_trainer"]["optimizer"]["state"] for checkpoint in (goes_on, whole)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)
    metrics = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    assert "keypoints/AP" in metrics[-1]


def evaluate(folder: Path) -> None:
    """One process: evaluates every model, untrained; the first one leaves metrics and results."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    found = {}
    for architecture, overrides in ARCHITECTURES.items():
        cfg = config(folder, "OUTPUT_DIR", folder / architecture / str(comm.get_world_size()), *overrides)
        torch.manual_seed(0)
        found[architecture] = PoseTrainer.test(cfg, PoseTrainer.build_model(cfg).eval())
    if comm.is_main_process():
        (folder / f"metrics_{comm.get_world_size()}.json").write_text(json.dumps(found))


def test_two_processes_evaluate_as_one(tmp_path: Path) -> None:
    config(tmp_path)  # writes the dataset
    evaluate(tmp_path)
    d2.launch(evaluate, 2, dist_url="auto", args=(tmp_path,))
    one, two = (json.loads((tmp_path / f"metrics_{count}.json").read_text()) for count in (1, 2))
    assert json.dumps(two) == json.dumps(one)  # NaN is not equal to itself
    for architecture in ARCHITECTURES:
        results = [
            json.loads((tmp_path / architecture / str(count) / "inference/coco_instances_results.json").read_text())
            for count in (1, 2)
        ]
        assert results[0] == results[1]
        assert {result["image_id"] for result in results[0]} <= {1, 2, 3}
        assert architecture == "LQR" or results[0]


def test_boxes_that_no_careful_detector_gives(tmp_path: Path) -> None:
    """Outside the image, over its edge, of no area, tiny and huge; none at all in the last image."""
    box = {"category_id": 1, "score": 0.9}
    boxes: list[dict[str, Any]] = [
        {**box, "image_id": 1, "bbox": [10, 10, 20, 30]},
        {**box, "image_id": 1, "bbox": [5000, -900, 20, 30]},
        {**box, "image_id": 1, "bbox": [12, 12, 0, 30]},
        {**box, "image_id": 2, "bbox": [WIDTH - 2, HEIGHT - 2, 30, 30], "score": 0.0},
        {**box, "image_id": 2, "bbox": [3, 3, 1e-3, 1e-3], "score": 1e-30},
        {**box, "image_id": 2, "bbox": [-1e4, -1e4, 3e4, 3e4], "score": 17.5},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    cfg = config(tmp_path, *SHARPOSE, "DATASETS.PERSON_BOXES", [str(tmp_path / "boxes.json")], "TEST.FINISHING", "[]")
    torch.manual_seed(0)
    metrics = PoseTrainer.test(cfg, PoseTrainer.build_model(cfg).eval())
    assert 0 <= metrics["keypoints"]["AP"] <= 100
    results = json.loads(Path(cfg.OUTPUT_DIR, "inference/coco_instances_results.json").read_text())
    assert [result["image_id"] for result in results] == [1, 1, 2, 2, 2], "five boxes have an area"
    assert [result["score"] for result in results] == pytest.approx([0.9, 0.9, 0.0, 0.0, 17.5])
