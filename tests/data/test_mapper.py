from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from querypose.config import get_cfg
from querypose.d2 import (
    BoxMode,
    CfgNode,
    DatasetCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    seed_all_rng,
)
from querypose.data import (
    DatasetError,
    ImageReadError,
    ImageSizeError,
    PoseMapper,
    load_datasets,
    register_builtin_datasets,
    register_pose_dataset,
)
from querypose.data.pixel_augmentation import CoarseDropout
from querypose.data.transforms import RandomCrop, RandomFlip, RandomResize, RandomRotation, RandomTransform
from querypose.skeleton import COCO_SKELETON
from tests.data.toy_dataset import TOY_SKELETON, toy_document, write_dataset

MARKER_COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)])


def _record(folder: Path, keypoints: np.ndarray, size: tuple[int, int] = (120, 160)) -> dict[str, Any]:
    """A black image with a square of 9x9 pixels in the colour of each keypoint at its place, and one person."""
    image = np.zeros((*size, 3), np.uint8)
    for (x, y, visibility), colour in zip(keypoints, MARKER_COLOURS, strict=True):
        if visibility:
            image[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5] = colour
    path = folder / "markers.png"
    Image.fromarray(image).save(path)
    person = {
        "id": 1, "bbox": [20.0, 10.0, 100.0, 90.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0,
        "keypoints": keypoints.ravel().tolist(),
    }  # fmt: skip
    return {
        "file_name": str(path), "height": size[0], "width": size[1], "image_id": 5, "annotations": [person]
    }  # fmt: skip


def _mapper(*transforms: RandomTransform, channel_order: str = "RGB") -> PoseMapper:
    return PoseMapper(is_train=True, channel_order=channel_order, transforms=transforms, skeleton=TOY_SKELETON)


AUGMENTATIONS = (
    RandomFlip(),
    RandomRotation(0.5, 25.0),
    RandomCrop(0.7, (100, 150), (60, 120)),
    RandomResize((90, 160, 240), 400),
)
KEYPOINTS = np.array([[60.5, 30.5, 2], [90.5, 50.5, 1], [40.5, 80.5, 2]])


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_what_is_drawn_at_a_keypoint_is_found_at_it_after_augmentation(tmp_path: Path, channel_order: str) -> None:
    record, mapper = _record(tmp_path, KEYPOINTS), _mapper(*AUGMENTATIONS, channel_order=channel_order)
    seen_flips, seen_lost, seen = set(), 0, 0
    for seed in range(60):
        np.random.seed(seed)  # noqa: NPY002  # as the loaders seed it
        sample = mapper(record)
        image = sample["image"].numpy().transpose(1, 2, 0)
        image = image if channel_order == "RGB" else image[:, :, ::-1]
        instances = sample["instances"]
        assert instances.image_size == image.shape[:2]
        for person in instances.gt_keypoints.tensor.numpy():
            labelled = person[:, 2] > 0
            seen_lost += int((~labelled).sum())
            if labelled[1] and labelled[2]:
                # A flip exchanges the names, so that `left` takes the place and colour of `right`.
                colour = image[int(min(person[1, 1], image.shape[0] - 1)), int(min(person[1, 0], image.shape[1] - 1))]
                seen_flips.add(bool(colour[2] > 128))
                pair = [1, 2] if colour[1] > 128 else [2, 1]
                assert person[1, 2] == KEYPOINTS[pair[0], 2]
            else:
                continue
            for keypoint, marker in zip((0, *pair), range(3), strict=True):
                x, y, visibility = person[keypoint]
                if visibility:
                    seen += 1
                    row, column = int(min(y, image.shape[0] - 1)), int(min(x, image.shape[1] - 1))
                    assert np.abs(image[row, column].astype(int) - MARKER_COLOURS[marker]).max() < 60
    assert seen_flips == {False, True}
    assert seen > 60
    assert seen_lost > 10


def test_centre_of_a_marker_is_its_keypoint_to_a_tenth_of_a_pixel(tmp_path: Path) -> None:
    record = _record(tmp_path, KEYPOINTS)
    for size in (77, 120, 301):
        sample = _mapper(RandomFlip(1.0), RandomResize((size,)))(record)
        image = sample["image"].numpy().astype(np.float64)
        y, x = np.mgrid[: image.shape[1], : image.shape[2]] + 0.5
        person = sample["instances"].gt_keypoints.tensor[0].numpy()
        for keypoint, channel in ((0, 0), (2, 1), (1, 2)):  # flipped: `right` is where the green `left` was
            weights = image[channel] / image[channel].sum()
            np.testing.assert_allclose(person[keypoint, :2], [(x * weights).sum(), (y * weights).sum()], atol=0.1)


def test_box_and_output_of_a_sample(tmp_path: Path) -> None:
    record = _record(tmp_path, KEYPOINTS)
    before = copy.deepcopy(record)
    sample = _mapper(RandomResize((240,)))(record)
    assert record == before
    assert sample.keys() == {"file_name", "height", "width", "image_id", "image", "instances"}
    assert (sample["height"], sample["width"]) == (120, 160)
    assert sample["image"].shape == (3, 240, 320)
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].is_contiguous()
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[40, 20, 240, 200]]
    assert instances.gt_classes.tolist() == [0]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_keypoints.tensor.tolist() == [[[121, 61, 2], [181, 101, 1], [81, 161, 2]]]


def test_crop_clips_boxes_and_may_leave_nobody(tmp_path: Path) -> None:
    record = _record(tmp_path, KEYPOINTS)
    mapper = _mapper(RandomCrop(1.0, (120,), (20, 24)))
    counts = set()
    for seed in range(80):
        np.random.seed(seed)  # noqa: NPY002
        sample = mapper(record)
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
    instances = _mapper()(record)["instances"]
    assert len(instances) == 1
    assert not instances.gt_keypoints.tensor.any()
    record["annotations"] = []
    assert len(_mapper()(record)["instances"]) == 0


def test_same_seed_same_sample(tmp_path: Path) -> None:
    record, mapper = _record(tmp_path, KEYPOINTS), _mapper(*AUGMENTATIONS)
    runs = []
    for seed in (3, 3, 4):
        seed_all_rng(seed)
        runs.append([mapper(record) for _ in range(6)])
    for first, second in zip(runs[0], runs[1], strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["instances"].gt_keypoints.tensor, second["instances"].gt_keypoints.tensor)
    assert any(a["image"].shape != b["image"].shape for a, b in zip(runs[0], runs[2], strict=True))


def _swap_stated_size(record: dict[str, Any]) -> None:
    record["height"], record["width"] = record["width"], record["height"]


def test_swapped_size_is_corrected_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, engine_logs: None
) -> None:
    record, mapper = _record(tmp_path, KEYPOINTS), _mapper()
    record["annotations"][0]["bbox"] = [20, 10, 80, 80]
    _swap_stated_size(record)
    with caplog.at_level(logging.WARNING):
        samples = [mapper(record), mapper(record)]
    assert [(sample["height"], sample["width"]) for sample in samples] == [(120, 160)] * 2
    assert samples[0]["instances"].gt_boxes.tensor.tolist() == [[20, 10, 100, 90]]
    assert caplog.text.count("height and width are swapped in its json") == 1
    assert "markers.png: image 5 is 160x120" in caplog.text


def test_annotations_that_ignore_the_exif_rotation_are_an_error(tmp_path: Path) -> None:
    record, mapper = _record(tmp_path, KEYPOINTS), _mapper()
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(record["file_name"]) as image:
        image.save(record["file_name"], exif=exif)
    record["annotations"][0]["bbox"] = [20.0, 10.0, 130.0, 90.0]
    with pytest.raises(ImageSizeError, match=r"is 120x160 pixels, its json says 160x120.*EXIF.*remove the tag"):
        mapper(record)


def test_other_size_is_an_error_that_names_file_and_id(tmp_path: Path) -> None:
    record, mapper = _record(tmp_path, KEYPOINTS), _mapper()
    record["width"] = 161
    with pytest.raises(ImageSizeError, match=r"markers.png: image 5 is 160x120 pixels, its json says 161x120.*json"):
        mapper(record)


def test_missing_image_and_missing_annotations(tmp_path: Path) -> None:
    record, mapper = _record(tmp_path, KEYPOINTS), _mapper()
    with pytest.raises(DatasetError, match="has no annotations"):
        mapper({key: value for key, value in record.items() if key != "annotations"})
    with pytest.raises(ImageReadError, match="no image"):
        mapper({**record, "file_name": str(tmp_path / "gone.png")})
    with pytest.raises(ValueError, match="needs a skeleton"):
        PoseMapper(is_train=True, channel_order="RGB", transforms=())


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


def test_mapper_of_a_config_does_what_the_config_says(toy_dataset: str) -> None:
    cfg = _config(toy_dataset, MIN_SIZE_TRAIN=[64], MIN_SIZE_TEST=90, MAX_SIZE_TEST=100, RANDOM_FLIP="none")
    cfg.INPUT.CROP.PROBABILITY = 0.0
    record = load_datasets(["toy"], require_persons=True)[0]
    train, test = PoseMapper(cfg, is_train=True), PoseMapper(cfg, is_train=False)
    assert train(record)["image"].shape == (3, 64, 85)
    sample = test(record)
    assert sample["image"].shape == (3, 75, 100)
    assert sample.keys() == {"file_name", "height", "width", "image_id", "sample_id", "image"}
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert PoseMapper(cfg, is_train=False)(record)["image"].shape == (3, 30, 40)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    flipping = PoseMapper(cfg, is_train=True)
    seed_all_rng(1)
    # Of the pair only `left` is labelled; a flip makes that `right`.
    right_is_labelled = {bool(flipping(record)["instances"].gt_keypoints.tensor[0, 2, 2] > 0) for _ in range(20)}
    assert right_is_labelled == {False, True}


def test_default_crop_is_the_paper_s(toy_dataset: str) -> None:
    transforms = PoseMapper(_config(toy_dataset), is_train=True).transforms
    assert transforms == (
        RandomFlip(0.5), RandomCrop(0.5, (400, 500, 600), (384, 600)), RandomResize(tuple(range(480, 801, 32)), 1333)
    )  # fmt: skip


def test_rotation_and_dropout_come_with_their_keys_alone(toy_dataset: str) -> None:
    cfg = _config(toy_dataset)
    cfg.INPUT.ROTATION.PROBABILITY = 0.4
    cfg.INPUT.COARSE_DROPOUT.PROBABILITY = 0.3
    mapper = PoseMapper(cfg, is_train=True)
    assert mapper.transforms[1] == RandomRotation(0.4, 25.0)
    assert len(mapper.transforms) == 4
    assert mapper.pixel_augmentations == (CoarseDropout(0.3, (0.05, 0.2), (0.015, 0.03), 0.5),)
    assert PoseMapper(cfg, is_train=False).pixel_augmentations == ()


def test_dropout_paints_the_image_and_leaves_the_annotations(tmp_path: Path) -> None:
    record, seen = _record(tmp_path, KEYPOINTS), []
    for augmentations in ((), (CoarseDropout(1.0, share=(1.0, 1.0)),)):
        mapper = PoseMapper(
            is_train=True,
            channel_order="RGB",
            transforms=AUGMENTATIONS,
            skeleton=TOY_SKELETON,
            pixel_augmentations=augmentations,
        )
        seed_all_rng(3)
        seen.append([mapper(record) for _ in range(5)])
    for plain, painted in zip(*seen, strict=True):
        assert plain["image"].any()
        assert not painted["image"].any()
        assert torch.equal(plain["instances"].gt_keypoints.tensor, painted["instances"].gt_keypoints.tensor)


@pytest.mark.parametrize(("minimum", "kept"), [(0, 1), (2, 1), (3, 0)])
def test_persons_with_too_few_visible_keypoints_are_left_out(tmp_path: Path, minimum: int, kept: int) -> None:
    """One of the three is hidden."""
    mapper = PoseMapper(
        is_train=True, channel_order="RGB", transforms=(), skeleton=TOY_SKELETON, min_visible_keypoints=minimum
    )
    assert len(mapper(_record(tmp_path, KEYPOINTS))["instances"]) == kept


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_of_the_engine_feed_from_it(toy_dataset: str, num_workers: int) -> None:
    cfg = _config(toy_dataset, MIN_SIZE_TRAIN=[32, 48], MAX_SIZE_TRAIN=64, MIN_SIZE_TEST=32)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.SOLVER.IMS_PER_BATCH = 2
    dataset = load_datasets(cfg.DATASETS.TRAIN, require_persons=True)
    loader = build_detection_train_loader(cfg, mapper=PoseMapper(cfg, True), dataset=dataset)
    batch = next(iter(loader))
    assert [sample["image_id"] for sample in batch] == [7, 7]
    assert all(len(sample["instances"]) <= 1 for sample in batch)
    test_loader = build_detection_test_loader(cfg, toy_dataset, mapper=PoseMapper(cfg, False))
    assert [sample["image_id"] for batch in test_loader for sample in batch] == [2, 7]


def test_real_photos_with_the_default_augmentation(shared_data: Path, datasets_root: Path) -> None:
    register_builtin_datasets(shared_data)
    samples = shared_data / "samples"
    register_pose_dataset("coco_samples", samples / "coco" / "test_coco.json", samples / "coco", COCO_SKELETON)
    for name in ("coco_samples", "lsp_multi_tiny", "lsp_tiny"):
        mapper = PoseMapper(_config(name), is_train=True)
        for record in DatasetCatalog.get(name):
            sample = mapper(record)
            height, width = sample["image"].shape[1:]
            assert 480 <= min(height, width) <= 800 or max(height, width) == 1333
            keypoints = sample["instances"].gt_keypoints.tensor
            assert (keypoints[..., 0] <= width).all()
            assert (keypoints[..., 1] <= height).all()
            assert (keypoints >= 0).all()
