from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from querypose.config import ConfigError, get_cfg, load_config
from querypose.d2 import BoxMode, CfgNode, DatasetCatalog
from querypose.data import (
    DatasetError,
    ImageReadError,
    ImageSizeError,
    build_pipeline,
    build_test_loader,
    build_train_loader,
    register_builtin_datasets,
    register_pose_dataset,
)
from querypose.data.augmentations import (
    Augmentation,
    CoarseDropout,
    RandomCrop,
    RandomFlip,
    RandomPersonSquare,
    RandomResize,
    RandomRotation,
)
from querypose.data.pipelines import WholeImage
from querypose.skeleton import COCO_SKELETON
from tests.data.toy_dataset import TOY_SKELETON, toy_document, write_dataset

MARKER_COLORS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)])


def _record(folder: Path, keypoints: np.ndarray, size: tuple[int, int] = (120, 160)) -> dict[str, Any]:
    """A black image with a square of 9x9 pixels in the color of each keypoint at its place, and one person."""
    image = np.zeros((*size, 3), np.uint8)
    for (x, y, visibility), color in zip(keypoints, MARKER_COLORS, strict=True):
        if visibility:
            image[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5] = color
    path = folder / "markers.png"
    Image.fromarray(image).save(path)
    person = {
        "id": 1, "bbox": [20.0, 10.0, 100.0, 90.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0,
        "keypoints": keypoints.ravel().tolist(),
    }  # fmt: skip
    return {
        "file_name": str(path), "height": size[0], "width": size[1], "image_id": 5, "annotations": [person]
    }  # fmt: skip


def _pipeline(*augmentations: Augmentation, **options: Any) -> WholeImage:
    return WholeImage(is_train=True, augmentations=augmentations, skeleton=TOY_SKELETON, **options)


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


AUGMENTATIONS = (
    RandomFlip(),
    RandomRotation(0.5, 25.0),
    RandomCrop(0.7, (100, 150), (60, 120)),
    RandomResize((90, 160, 240), 400),
)
KEYPOINTS = np.array([[60.5, 30.5, 2], [90.5, 50.5, 1], [40.5, 80.5, 2]])


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_what_is_drawn_at_a_keypoint_is_found_at_it_after_augmentation(tmp_path: Path, channel_order: str) -> None:
    record, pipeline = _record(tmp_path, KEYPOINTS), _pipeline(*AUGMENTATIONS, channel_order=channel_order)
    seen_flips, seen_lost, seen = set(), 0, 0
    for seed in range(60):
        sample = pipeline.sample(record, _generator(seed))
        image = sample["image"].numpy().transpose(1, 2, 0)
        image = image if channel_order == "RGB" else image[:, :, ::-1]
        instances = sample["instances"]
        assert instances.image_size == image.shape[:2]
        for person in instances.gt_keypoints.tensor.numpy():
            labeled = person[:, 2] > 0
            seen_lost += int((~labeled).sum())
            if labeled[1] and labeled[2]:
                # A flip exchanges the names, so that `left` takes the place and color of `right`.
                color = image[int(min(person[1, 1], image.shape[0] - 1)), int(min(person[1, 0], image.shape[1] - 1))]
                seen_flips.add(bool(color[2] > 128))
                pair = [1, 2] if color[1] > 128 else [2, 1]
                assert person[1, 2] == KEYPOINTS[pair[0], 2]
            else:
                continue
            for keypoint, marker in zip((0, *pair), range(3), strict=True):
                x, y, visibility = person[keypoint]
                if visibility:
                    seen += 1
                    row, column = int(min(y, image.shape[0] - 1)), int(min(x, image.shape[1] - 1))
                    assert np.abs(image[row, column].astype(int) - MARKER_COLORS[marker]).max() < 60
    assert seen_flips == {False, True}
    assert seen > 60
    assert seen_lost > 10


def test_center_of_a_marker_is_its_keypoint_to_a_tenth_of_a_pixel(tmp_path: Path) -> None:
    record = _record(tmp_path, KEYPOINTS)
    for size in (77, 120, 301):
        sample = _pipeline(RandomFlip(1.0), RandomResize((size,))).sample(record, _generator())
        image = sample["image"].numpy().astype(np.float64)
        y, x = np.mgrid[: image.shape[1], : image.shape[2]] + 0.5
        person = sample["instances"].gt_keypoints.tensor[0].numpy()
        for keypoint, channel in ((0, 0), (2, 1), (1, 2)):  # flipped: `right` is where the green `left` was
            weights = image[channel] / image[channel].sum()
            np.testing.assert_allclose(person[keypoint, :2], [(x * weights).sum(), (y * weights).sum()], atol=0.1)


def test_box_and_output_of_a_sample(tmp_path: Path) -> None:
    record = _record(tmp_path, KEYPOINTS)
    before = copy.deepcopy(record)
    sample = _pipeline(RandomResize((240,))).sample(record, _generator())
    assert record == before
    assert sample.keys() == {"file_name", "height", "width", "image_id", "image", "frame", "instances"}
    assert (sample["height"], sample["width"]) == (120, 160)
    assert sample["image"].shape == (3, 240, 320)
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].is_contiguous()
    np.testing.assert_array_equal(sample["frame"].matrix, [[2, 0, 0], [0, 2, 0]])
    assert sample["frame"].source_size == (120, 160)
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[40, 20, 240, 200]]
    assert instances.gt_classes.tolist() == [0]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_keypoints.tensor.tolist() == [[[121, 61, 2], [181, 101, 1], [81, 161, 2]]]


def test_crop_clips_boxes_and_may_leave_nobody(tmp_path: Path) -> None:
    record = _record(tmp_path, KEYPOINTS)
    pipeline = _pipeline(RandomCrop(1.0, (120,), (20, 24)))
    counts = set()
    for seed in range(80):
        sample = pipeline.sample(record, _generator(seed))
        instances = sample["instances"]
        counts.add(len(instances))
        height, width = instances.image_size
        assert (height, width) == tuple(sample["image"].shape[1:])
        boxes = instances.gt_boxes.tensor
        assert instances.gt_keypoints.tensor.shape == (len(instances), 3, 3)
        assert len(instances.gt_classes) == len(instances)
        if len(instances):
            assert (boxes >= 0).all()
            assert (boxes[:, 2] <= width).all()
            assert (boxes[:, 3] <= height).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
        lost = instances.gt_keypoints.tensor[..., 2] == 0
        assert (instances.gt_keypoints.tensor[lost] == 0).all()
    assert counts == {0, 1}


def test_crowd_regions_are_left_out_and_unlabelled_persons_kept(tmp_path: Path) -> None:
    record = _record(tmp_path, KEYPOINTS)
    person = record["annotations"][0]
    record["annotations"] = [{**person, "iscrowd": 1}, {**person, "keypoints": [0.5, 0.5, 0] * 3}]
    instances = _pipeline().sample(record, _generator())["instances"]
    assert len(instances) == 1
    assert not instances.gt_keypoints.tensor.any()
    record["annotations"] = []
    assert len(_pipeline().sample(record, _generator())["instances"]) == 0


def test_same_seed_same_sample(tmp_path: Path) -> None:
    record, pipeline = _record(tmp_path, KEYPOINTS), _pipeline(*AUGMENTATIONS)
    runs = []
    for seed in (3, 3, 4):
        generator = _generator(seed)
        runs.append([pipeline.sample(record, generator) for _ in range(6)])
    for first, second in zip(runs[0], runs[1], strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["instances"].gt_keypoints.tensor, second["instances"].gt_keypoints.tensor)
    assert any(a["image"].shape != b["image"].shape for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_an_image_at_hand_gives_what_its_file_gives(tmp_path: Path, channel_order: str) -> None:
    record, pipeline = _record(tmp_path, KEYPOINTS), _pipeline(*AUGMENTATIONS, channel_order=channel_order)
    with Image.open(record["file_name"]) as file:
        image = np.asarray(file)
    assert not image.flags.writeable
    from_file, from_array = (pipeline.sample(record, _generator(3), array) for array in (None, image))
    assert torch.equal(from_file["image"], from_array["image"])
    assert pipeline.records_of_image((30, 40)) == [{"height": 30, "width": 40}]


def _swap_stated_size(record: dict[str, Any]) -> None:
    record["height"], record["width"] = record["width"], record["height"]


def test_swapped_size_is_corrected_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, engine_logs: None
) -> None:
    record, pipeline = _record(tmp_path, KEYPOINTS), _pipeline()
    record["annotations"][0]["bbox"] = [20, 10, 80, 80]
    _swap_stated_size(record)
    with caplog.at_level(logging.WARNING):
        samples = [pipeline.sample(record, _generator()) for _ in range(2)]
    assert [(sample["height"], sample["width"]) for sample in samples] == [(120, 160)] * 2
    assert samples[0]["instances"].gt_boxes.tensor.tolist() == [[20, 10, 100, 90]]
    assert caplog.text.count("height and width are swapped in its json") == 1
    assert "markers.png: image 5 is 160x120" in caplog.text


def test_annotations_that_ignore_the_exif_rotation_are_an_error(tmp_path: Path) -> None:
    record, pipeline = _record(tmp_path, KEYPOINTS), _pipeline()
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(record["file_name"]) as image:
        image.save(record["file_name"], exif=exif)
    record["annotations"][0]["bbox"] = [20.0, 10.0, 130.0, 90.0]
    with pytest.raises(ImageSizeError, match=r"is 120x160 pixels, but 160x120 in its json.*EXIF.*remove the tag"):
        pipeline.sample(record, _generator())


def test_other_size_is_an_error_that_names_file_and_id(tmp_path: Path) -> None:
    record, pipeline = _record(tmp_path, KEYPOINTS), _pipeline()
    record["width"] = 161
    with pytest.raises(ImageSizeError, match=r"markers.png: image 5 is 160x120 pixels, but 161x120 in its json.*json"):
        pipeline.sample(record, _generator())


def test_missing_image_and_missing_annotations(tmp_path: Path) -> None:
    record, pipeline = _record(tmp_path, KEYPOINTS), _pipeline()
    with pytest.raises(DatasetError, match="has no annotations"):
        pipeline.sample({key: value for key, value in record.items() if key != "annotations"}, _generator())
    with pytest.raises(ImageReadError, match="no image"):
        pipeline.sample({**record, "file_name": str(tmp_path / "gone.png")}, _generator())
    with pytest.raises(ValueError, match="needs a skeleton"):
        WholeImage(is_train=True)


def _config(name: str, **inputs: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in inputs.items():
        cfg.INPUT[key] = value
    return cfg


@pytest.fixture
def toy_dataset(datasets_root: Path) -> str:
    register_pose_dataset("toy", *write_dataset(datasets_root, toy_document()), TOY_SKELETON)
    return "toy"


def test_pipeline_of_a_config_does_what_the_config_says(toy_dataset: str) -> None:
    cfg = _config(toy_dataset, MIN_SIZE_TRAIN=[64], MIN_SIZE_TEST=90, MAX_SIZE_TEST=100, RANDOM_FLIP="none")
    cfg.INPUT.CROP.PROBABILITY = 0.0
    train, test = build_pipeline(cfg, is_train=True), build_pipeline(cfg, is_train=False)
    [record] = train.records(["toy"])
    assert record["sample_id"] == record["image_id"] == 7
    assert [record["sample_id"] for record in test.records(["toy"])] == [2, 7]
    assert train.sample(record, _generator())["image"].shape == (3, 64, 85)
    sample = test.sample(record, _generator())
    assert sample["image"].shape == (3, 75, 100)
    assert sample.keys() == {"file_name", "height", "width", "image_id", "sample_id", "image", "frame"}
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert build_pipeline(cfg, is_train=False).sample(record, _generator())["image"].shape == (3, 30, 40)
    cfg.INPUT.SCALE_TEST = 0.45
    assert build_pipeline(cfg, is_train=False).sample(record, _generator())["image"].shape == (3, 14, 18)  # half up
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    flipping, generator = build_pipeline(cfg, is_train=True), _generator(1)
    # Of the pair only `left` is labeled; a flip makes that `right`.
    samples = [flipping.sample(record, generator) for _ in range(20)]
    assert {bool(sample["instances"].gt_keypoints.tensor[0, 2, 2] > 0) for sample in samples} == {False, True}


def test_default_crop_is_the_paper_s(toy_dataset: str) -> None:
    assert build_pipeline(_config(toy_dataset), is_train=True).augmentations == (
        RandomFlip(0.5), RandomCrop(0.5, (400, 500, 600), (384, 600)), RandomResize(tuple(range(480, 801, 32)), 1333)
    )  # fmt: skip


def test_rotation_and_dropout_come_with_their_keys_alone(toy_dataset: str) -> None:
    cfg = _config(toy_dataset)
    cfg.INPUT.ROTATION.PROBABILITY = 0.4
    cfg.INPUT.COARSE_DROPOUT.PROBABILITY = 0.3
    augmentations = build_pipeline(cfg, is_train=True).augmentations
    assert augmentations[1] == RandomRotation(0.4, 25.0)
    assert augmentations[4:] == (CoarseDropout(0.3, (0.05, 0.2), (0.015, 0.03), 0.5),)
    assert build_pipeline(cfg, is_train=False).augmentations == (RandomResize([800], 1333),)


def test_a_list_in_yaml_takes_the_place_of_the_default(toy_dataset: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "DATASETS: {TRAIN: [toy]}\n"
        "INPUT:\n"
        "  AUGMENTATIONS:\n"
        "  - {name: RandomResize, short_sides: [20, 24]}\n"
        "  - {name: CoarseDropout, probability: 1, share: [0.1, 0.1]}\n"
        "  - {name: RandomFlip}\n"
    )
    cfg = load_config(tmp_path / "config.yaml")
    pipeline = build_pipeline(cfg, is_train=True)
    resize, dropout, flip = pipeline.augmentations
    assert resize == RandomResize([20, 24])
    assert dropout == CoarseDropout(1.0, (0.1, 0.1))
    assert flip == RandomFlip(0.5)
    assert isinstance(dropout.share, tuple)
    assert build_pipeline(cfg, is_train=False).augmentations == (RandomResize([800], 1333),)


def test_the_word_default_stands_for_what_the_keys_describe_and_an_empty_list_for_none(toy_dataset: str) -> None:
    cfg = _config(toy_dataset)
    described = build_pipeline(cfg, is_train=True).augmentations
    cfg.INPUT.AUGMENTATIONS = ["default", {"name": "RandomRotation", "probability": 1.0, "max_degrees": 9.0}]
    assert build_pipeline(cfg, is_train=True).augmentations == (*described, RandomRotation(1.0, 9.0))
    cfg.INPUT.AUGMENTATIONS = []
    assert build_pipeline(cfg, is_train=True).augmentations == ()
    assert len(described) > 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("defaults", r"AUGMENTATIONS\[0\] is 'defaults'; allowed: default, {name"),
        ("7", r"AUGMENTATIONS\[0\] is 7; allowed: {name"),
        ("{name: RandomFlop}", r"AUGMENTATIONS\[0\] has the name 'RandomFlop'; allowed: .*'RandomFlip'"),
        ("{name: RandomFlip, share: 0.5}", r"'RandomFlip' the argument 'share'; allowed: probability: a number in"),
        ("{name: RandomFlip, probability: often}", r"'probability' with 'often'; allowed: probability: a number in"),
        ("{name: RandomRotation, probability: 1}", r"does not give 'RandomRotation' the argument 'max_degrees'"),
        ("{name: CoarseDropout, probability: 1, share: [0.5]}", r"'share' with \[0.5\]; allowed: share: .smallest"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(f"INPUT: {{AUGMENTATIONS: [{entry}]}}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "config.yaml")


def test_dropout_paints_the_image_and_leaves_the_annotations(tmp_path: Path) -> None:
    record, seen = _record(tmp_path, KEYPOINTS), []
    for dropout in ((), (CoarseDropout(1.0, share=(1.0, 1.0)),)):
        pipeline = _pipeline(*AUGMENTATIONS, *dropout)
        seen.append([pipeline.sample(record, _generator(seed)) for seed in range(5)])
    for plain, painted in zip(*seen, strict=True):
        assert plain["image"].any()
        assert not painted["image"].any()
        assert torch.equal(plain["instances"].gt_keypoints.tensor, painted["instances"].gt_keypoints.tensor)


@pytest.mark.parametrize(("minimum", "kept"), [(0, 1), (2, 1), (3, 0)])
def test_persons_with_too_few_visible_keypoints_are_left_out(tmp_path: Path, minimum: int, kept: int) -> None:
    """One of the three is hidden."""
    pipeline = _pipeline(min_visible_keypoints=minimum)
    assert len(pipeline.sample(_record(tmp_path, KEYPOINTS), _generator())["instances"]) == kept


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_feed_from_it(toy_dataset: str, num_workers: int) -> None:
    cfg = _config(toy_dataset, MIN_SIZE_TRAIN=[32, 48], MAX_SIZE_TRAIN=64, MIN_SIZE_TEST=32)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.SOLVER.IMS_PER_BATCH = 2
    batch = next(iter(build_train_loader(cfg)))
    assert [sample["image_id"] for sample in batch] == [7, 7]
    assert all(len(sample["instances"]) <= 1 for sample in batch)
    assert [sample["image_id"] for batch in build_test_loader(cfg, toy_dataset) for sample in batch] == [2, 7]


def test_real_photos_with_the_default_augmentation(shared_data: Path, datasets_root: Path) -> None:
    register_builtin_datasets(shared_data)
    samples = shared_data / "samples"
    register_pose_dataset("coco_samples", samples / "coco" / "test_coco.json", samples / "coco", COCO_SKELETON)
    for name in ("coco_samples", "lsp_multi_tiny", "lsp_tiny"):
        pipeline = build_pipeline(_config(name), is_train=True)
        for record in DatasetCatalog.get(name):
            sample = pipeline.sample(record, _generator())
            height, width = sample["image"].shape[1:]
            assert 480 <= min(height, width) <= 800 or max(height, width) == 1333
            keypoints = sample["instances"].gt_keypoints.tensor
            assert (keypoints[..., 0] <= width).all()
            assert (keypoints[..., 1] <= height).all()
            assert (keypoints >= 0).all()


def test_a_square_is_about_any_of_the_persons(tmp_path: Path) -> None:
    left, right = (np.array([[x, 30.0, 2.0], [x, 50.0, 2.0], [x, 40.0, 0.0]]) for x in (30.0, 120.0))
    record = _record(tmp_path, left)
    (person,) = record["annotations"]
    nobody = np.zeros((3, 3))
    record["annotations"] = [{**person, "keypoints": keypoints.ravel().tolist()} for keypoints in (left, nobody, right)]
    square = RandomPersonSquare(32, side_bounds=(2.0, 2.0), max_shift=0.0, max_degrees=0.0)
    centers = {
        float(_pipeline(square).sample(record, _generator(seed))["frame"].inverse().apply_coords(np.array([16, 16]))[0])
        for seed in range(8)
    }
    assert sorted(round(center) for center in centers) == [30, 120]
    record["annotations"] = []
    assert _pipeline(square).sample(record, _generator())["image"].shape == (3, 120, 160)
