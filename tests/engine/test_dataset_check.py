from __future__ import annotations

import logging
from pathlib import Path

import pytest

from querypose.config import get_cfg
from querypose.d2 import CfgNode
from querypose.data import DatasetError, load_datasets, register_pose_dataset
from querypose.engine import PoseTrainer, require_sound_datasets
from querypose.evaluation import PoseEvaluator
from tests.data.conftest import datasets_root as datasets_root
from tests.data.toy_dataset import TOY_SKELETON, count_reads, toy_annotation, toy_document, write_dataset


def _cfg(root: Path, check: str, **changes: object) -> CfgNode:
    json_file, images = write_dataset(root / "toy", toy_document(**changes))
    register_pose_dataset("toy", json_file, images, TOY_SKELETON)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATASETS.CHECK = ["toy"], [], check
    return cfg


def test_training_refuses_all_errors_at_once_before_anything_is_built(datasets_root: Path) -> None:
    broken = [toy_annotation(id=number, keypoints=[number]) for number in (1, 2)]
    cfg = _cfg(datasets_root, "annotations", annotations=broken)
    cfg.MODEL.META_ARCHITECTURE = "nothing that could be built"
    with pytest.raises(DatasetError, match=r"(?s)2 errors in the datasets toy .*annotation 1 .*annotation 2 "):
        PoseTrainer(cfg)


def test_one_error_is_one_line(datasets_root: Path) -> None:
    with pytest.raises(DatasetError, match=r"^\S*toy.json: 'keypoints' of annotation 1 .*must be 9 numbers.*\.$"):
        require_sound_datasets(_cfg(datasets_root, "annotations", annotations=[toy_annotation(keypoints=[1])]))


def test_files_are_looked_at_by_key(datasets_root: Path) -> None:
    cfg = _cfg(datasets_root, "annotations")
    (datasets_root / "toy" / "images" / "b.png").unlink()
    require_sound_datasets(cfg)
    cfg.DATASETS.CHECK = "files"
    with pytest.raises(DatasetError, match=r"There is no image .*b\.png"):
        require_sound_datasets(cfg)
    cfg.DATASETS.CHECK = "off"
    require_sound_datasets(cfg)


def test_each_json_is_read_once_for_check_training_and_evaluation(
    datasets_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = _cfg(datasets_root, "files")
    json_file, images = write_dataset(datasets_root / "val", toy_document())
    register_pose_dataset("val", json_file, images, TOY_SKELETON)
    cfg.DATASETS.TEST = ["val"]
    reads = count_reads(monkeypatch)
    require_sound_datasets(cfg)
    assert load_datasets(cfg.DATASETS.TRAIN)
    for _ in range(2):  # an evaluation while training, and another one
        assert load_datasets(cfg.DATASETS.TEST)
        PoseEvaluator(cfg, "val")
    assert reads == [str(datasets_root / name / "toy.json") for name in ("toy", "val")]


def test_images_that_are_in_both_splits_are_logged(datasets_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = _cfg(datasets_root, "annotations")
    cfg.DATASETS.TEST = ["toy"]
    with caplog.at_level(logging.WARNING):
        require_sound_datasets(cfg)
    assert "warning: image in training and test data: 1" in caplog.text
