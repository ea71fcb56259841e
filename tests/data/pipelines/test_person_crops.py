from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from querypose.config import ConfigError, get_cfg, load_config
from querypose.d2 import BoxMode, CfgNode
from querypose.data import (
    DatasetError,
    build_pipeline,
    build_test_loader,
    build_train_loader,
    register_pose_dataset,
)
from querypose.data.augmentations import (
    CoarseDropout,
    RandomFlip,
    RandomHalfBody,
    RandomRotation,
    RandomScale,
    RandomShift,
)
from querypose.data.pipelines import PersonCrops
from tests.data.toy_dataset import TOY_SKELETON, toy_annotation, toy_document, write_dataset

SIZE = (64, 48)
AUGMENTATIONS = (RandomShift(0.5, 0.15), RandomFlip(), RandomScale(0.7, (0.7, 1.3)), RandomRotation(0.6, 40.0))


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A person whose three keypoints are squares of red, green and blue."""
    image = np.zeros((120, 160, 3), np.uint8)
    keypoints = [(60.5, 30.5, 2), (75.5, 50.5, 2), (50.5, 80.5, 2)]
    for channel, (x, y, _) in enumerate(keypoints):
        image[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5, channel] = 255
    Image.fromarray(image).save(tmp_path / "markers.png")
    person = {
        "id": 1, "bbox": [40.0, 15.0, 45.0, 75.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0,
        "keypoints": np.array(keypoints).ravel().tolist(),
    }  # fmt: skip
    return {
        "file_name": str(tmp_path / "markers.png"), "height": 120, "width": 160, "image_id": 5, "sample_id": (5, 1),
        "annotations": [person], "person_box": [40.0, 15.0, 85.0, 90.0],
    }  # fmt: skip


def crops(*augmentations: Any) -> PersonCrops:
    return PersonCrops(is_train=True, size=SIZE, padding=1.25, augmentations=augmentations, skeleton=TOY_SKELETON)


def test_the_padded_box_fills_the_crop(record: dict[str, Any]) -> None:
    sample = crops().sample(record, np.random.default_rng(0))
    assert sample["image"].shape == (3, *SIZE)
    assert sample["image"].dtype == torch.uint8
    # 75 pixels of height, padded by a quarter, are 64: a factor of 0.6827.
    factor = 64 / 75 / 1.25
    box = [24 - 22.5 * factor, 32 - 37.5 * factor, 24 + 22.5 * factor, 32 + 37.5 * factor]
    np.testing.assert_allclose(sample["instances"].gt_boxes.tensor[0], box, rtol=1e-5)
    assert "annotations" not in sample
    assert sample["sample_id"] == (5, 1)


def test_markers_lie_at_the_keypoints_and_come_back_by_the_frame(record: dict[str, Any]) -> None:
    annotated = np.array(record["annotations"][0]["keypoints"]).reshape(3, 3)[:, :2]
    pipeline = crops(*AUGMENTATIONS)
    is_mirrored, num_found = set(), 0
    for seed in range(40):
        sample = pipeline.sample(record, np.random.default_rng(seed))
        keypoints = sample["instances"].gt_keypoints.tensor[0].numpy().astype(np.float64)
        is_mirrored.add(sample["frame"].mirrors)
        if sample["frame"].mirrors:
            keypoints = keypoints[list(TOY_SKELETON.flip_indices)]
        for channel, (x, y, visibility) in enumerate(keypoints):
            if visibility and 0 <= x < SIZE[1] and 0 <= y < SIZE[0]:
                num_found += 1
                assert sample["image"][channel, int(y), int(x)] > 100
                back = sample["frame"].inverse().apply_coords(np.array([x, y]))
                np.testing.assert_allclose(back, annotated[channel], atol=1e-3)
    assert is_mirrored == {False, True}
    assert num_found > 80


def test_an_image_at_hand_is_cropped_by_its_boxes_or_as_a_whole() -> None:
    pipeline = crops()
    assert pipeline.records_of_image((30, 40)) == [{"height": 30, "width": 40, "person_box": [0, 0, 40, 30]}]
    boxes = pipeline.records_of_image((30, 40), np.array([[1.0, 2, 3, 4], [5, 6, 7, 9]]))
    assert [record["person_box"] for record in boxes] == [[1, 2, 3, 4], [5, 6, 7, 9]]


@pytest.fixture
def cfg(datasets_root: Path) -> CfgNode:
    """Two persons, one of them without a labeled keypoint, and a crowd region on image 7; nobody on image 2."""
    unlabeled = toy_annotation(id=4, bbox=[1, 2, 10, 20], keypoints=[0] * 9, num_keypoints=0)
    document = toy_document(annotations=[*toy_document()["annotations"], unlabeled])
    register_pose_dataset("toy", *write_dataset(datasets_root, document), TOY_SKELETON)
    cfg = get_cfg()
    cfg.INPUT.PIPELINE = "person_crops"
    cfg.INPUT.PERSON_CROP.SIZE = list(SIZE)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ["toy"]
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 3
    return cfg


def test_training_takes_labeled_persons_and_evaluation_every_box(cfg: CfgNode) -> None:
    [trained] = build_pipeline(cfg, is_train=True).records(["toy"])
    assert trained["sample_id"] == (7, 1)
    assert trained["person_box"] == [10, 5, 30, 20]
    assert [person["id"] for person in trained["annotations"]] == [1]
    evaluated = [sample for batch in build_test_loader(cfg, "toy") for sample in batch]
    assert [sample["sample_id"] for sample in evaluated] == [(7, 1), (7, 4)]
    assert not any("instances" in sample or "annotations" in sample for sample in evaluated)
    cfg.INPUT.AUGMENTATIONS = [{"name": "RandomShift", "probability": 1.0, "max_share": 0.1}]
    batch = next(iter(build_train_loader(cfg)))
    assert [sample["image"].shape for sample in batch] == [(3, *SIZE)] * 3
    assert len({tuple(sample["frame"].matrix.ravel()) for sample in batch}) == 3, "each is shifted by itself"
    cfg.DATALOADER.MIN_VISIBLE_KEYPOINTS = 2
    with pytest.raises(DatasetError, match="No person of toy can be used"):
        build_pipeline(cfg, is_train=True).records(["toy"])


def detection(**changes: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 12], "score": 0.5, **changes}


def test_detected_boxes_take_the_place_of_annotated_ones_in_evaluation(cfg: CfgNode, tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    other_category, no_area = detection(category_id=1), detection(bbox=[1, 2, 0, 5])
    file.write_text(json.dumps([detection(), other_category, detection(image_id=2, score=0.25), no_area]))
    cfg.DATASETS.PERSON_BOXES = [str(file)]
    found = build_pipeline(cfg, is_train=False).records(["toy"])
    assert [(record["sample_id"], record["box_score"]) for record in found] == [((7, 0), 0.5), ((2, 2), 0.25)]
    assert found[0]["person_box"] == [1, 2, 11, 14]
    assert "annotations" not in found[0]
    assert len(build_pipeline(cfg, is_train=True).records(["toy"])) == 1, "training keeps the annotated boxes"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([detection(image_id=99)], r"result 0 has the image_id 99, which is not in dataset 'toy'"),
        ([detection(), detection(bbox=[1, 2, 3])], r"result 1 .*has 3 values in 'bbox'"),
        ([{"image_id": 7}], r"result 0 has no 'category_id'"),
        ([detection(category_id=1)], r"No person of toy can be used"),
        ([], r"No person of toy can be used"),
    ],
)
def test_boxes_that_cannot_be_used(cfg: CfgNode, tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    cfg.DATASETS.PERSON_BOXES = [str(tmp_path / "boxes.json")]
    with pytest.raises(DatasetError, match=message):
        build_pipeline(cfg, is_train=False).records(["toy"])


def test_a_box_outside_the_image_gives_a_black_crop(record: dict[str, Any]) -> None:
    """And one that reaches over its edge what there is of it; poses come back in both."""
    for box, is_black in (([400.0, 300.0, 450.0, 380.0], True), ([-500.0, -10.0, 85.0, 90.0], False)):
        pipeline = PersonCrops(is_train=False, size=SIZE, padding=1.25, unbiased=True)
        sample = pipeline.sample({**record, "person_box": box}, np.random.default_rng(0))
        assert sample["image"].shape == (3, *SIZE)
        assert bool((sample["image"] == 0).all()) == is_black
        center = sample["frame"].inverse().apply_coords(np.array([SIZE[1] / 2, SIZE[0] / 2]))
        np.testing.assert_allclose(center, [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def test_missing_boxes_are_named(cfg: CfgNode, datasets_root: Path) -> None:
    cfg.DATASETS.PERSON_BOXES = ["gone.json"]
    with pytest.raises(DatasetError, match=r"gone\.json: there is no such file"):
        build_pipeline(cfg, is_train=False).records(["toy"])
    test_split = toy_document()
    del test_split["annotations"]
    register_pose_dataset("toy", *write_dataset(datasets_root / "test", test_split), TOY_SKELETON)
    cfg.DATASETS.PERSON_BOXES = []
    with pytest.raises(DatasetError, match=r"'toy' has no annotations.*DATASETS\.PERSON_BOXES"):
        build_pipeline(cfg, is_train=False).records(["toy"])
    with pytest.raises(ConfigError, match="has 2 files; allowed: none, or one for each of the 1 datasets"):
        load_config(None, ["DATASETS.TEST", "['toy']", "DATASETS.PERSON_BOXES", "['a', 'b']"])


def test_keypoints_outside_the_crop_stay(record: dict[str, Any]) -> None:
    """The third keypoint lies below this box; a heat map may have the upper part of its Gaussian."""
    record = {**record, "person_box": [40.0, 15.0, 85.0, 70.0]}
    pipeline = PersonCrops(is_train=True, size=SIZE, padding=1.0, skeleton=TOY_SKELETON)
    keypoints = pipeline.sample(record, np.random.default_rng(0))["instances"].gt_keypoints.tensor[0]
    assert keypoints[2, 1] > SIZE[0]
    assert keypoints[2, 2] == 2


def test_an_unbiased_crop_reaches_from_center_to_center(record: dict[str, Any]) -> None:
    """Also a turned one, and before a dropout: its cells stay whole pixels."""
    turn, dropout = RandomRotation(1.0, 40.0), CoarseDropout(1.0)
    pipeline = PersonCrops(
        is_train=True, size=SIZE, padding=1.25, unbiased=True, augmentations=(turn, dropout), skeleton=TOY_SKELETON
    )
    assert pipeline.augmentations[0] is turn
    assert pipeline.augmentations[2] is dropout
    sample = pipeline.sample(record, np.random.default_rng(0))
    edges = crops(turn).sample(record, np.random.default_rng(0))["frame"].inverse()
    corners = edges.apply_coords(np.array([[0, 0], [SIZE[1], 0], [0, SIZE[0]]]))
    expected = [[0.5, 0.5], [SIZE[1] - 0.5, 0.5], [0.5, SIZE[0] - 0.5]]
    np.testing.assert_allclose(sample["frame"].apply_coords(corners), expected)


def test_half_a_body_is_cut_out_of_training_samples_alone(record: dict[str, Any]) -> None:
    skeleton = dataclasses.replace(TOY_SKELETON, upper_body=(0, 1))
    half = RandomHalfBody(1.0, min_keypoints=2, padding=2.0)
    pipeline = PersonCrops(is_train=True, size=SIZE, padding=1.25, augmentations=(half,), skeleton=skeleton)
    sample = pipeline.sample(record, np.random.default_rng(0))
    # One keypoint is no lower half; the upper two are 15x20 px apart.
    positions = sample["instances"].gt_keypoints.tensor[0, :2, :2]
    torch.testing.assert_close(positions.mean(0), torch.tensor([24.0, 32.0]))
    assert np.ptp(positions.numpy(), axis=0) == pytest.approx([24, 32])
    watching = PersonCrops(is_train=False, size=SIZE, padding=1.25)
    assert not watching.augmentations
