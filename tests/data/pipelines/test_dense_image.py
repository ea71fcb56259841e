from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from querypose.config import load_config
from querypose.d2 import BoxMode
from querypose.data import DatasetError, build_pipeline, read_annotations, register_pose_dataset
from querypose.data.augmentations import CenteredCanvas, RandomFlip, RandomSquare
from querypose.data.pipelines import DenseImage
from querypose.data.pipelines.dense_image import segment_pixels, valid_mask
from querypose.data.transforms import crop, horizontal_flip, identity, rotate
from tests.data.toy_dataset import TOY_SKELETON, read_records, toy_annotation, toy_document, write_dataset

SIZE = (30, 40)
SQUARE = [10.0, 5.0, 20.0, 5.0, 20.0, 15.0, 10.0, 15.0]


def crowd(**changes: Any) -> dict[str, Any]:
    return {"iscrowd": 1, "keypoints": [0] * 9, "bbox": [30, 20, 5, 5], "bbox_mode": BoxMode.XYWH_ABS, **changes}


def square_pixels() -> np.ndarray:
    pixels_HW = np.zeros(SIZE, dtype=bool)
    pixels_HW[5:15, 10:20] = True
    return pixels_HW


def runs_of(pixels_HW: np.ndarray) -> list[int]:
    """Uncompressed RLE, column by column: lengths of 0s and 1s in turn."""
    flat, counts = pixels_HW.T.ravel(), [0]
    for index, value in enumerate(flat):
        if value != len(counts) % 2 - 1 and (index == 0 or value != flat[index - 1]):
            counts.append(0)
        counts[-1] += 1
    return counts


@pytest.mark.parametrize("kind", ["polygon", "two polygons", "rle", "compressed rle"])
def test_segmentations_of_every_kind_become_pixels(kind: str) -> None:
    compressed = coco_mask.encode(np.asfortranarray(square_pixels().astype(np.uint8)))
    segmentation = {
        "polygon": [SQUARE],
        "two polygons": [[10, 5, 15, 5, 15, 15, 10, 15], [15, 5, 20, 5, 20, 15, 15, 15]],
        "rle": {"size": [*SIZE], "counts": runs_of(square_pixels())},
        "compressed rle": {"size": [*SIZE], "counts": compressed["counts"].decode()},
    }[kind]
    assert (segment_pixels(crowd(segmentation=segmentation), SIZE) == square_pixels()).all()


@pytest.mark.parametrize("segmentation", [None, [], {"size": [40, 30], "counts": [1200]}])
def test_a_box_stands_in_for_a_segmentation_that_does_not_fit(segmentation: Any) -> None:
    box = crowd(bbox=[9.5, 5.2, 10.5, 9.5], segmentation=segmentation)
    pixels_HW = segment_pixels(box, SIZE)
    assert pixels_HW[5:15, 9:20].all()
    assert pixels_HW.sum() == 10 * 11


def test_the_mask_follows_the_frame() -> None:
    nobody = crowd(iscrowd=0, segmentation=[SQUARE])
    person = nobody | {"keypoints": [5, 5, 1, *[0] * 6]}
    assert (valid_mask([nobody, person], identity(SIZE)).numpy() == ~square_pixels()).all()
    assert valid_mask([person], identity(SIZE)).all()
    flipped = valid_mask([nobody], horizontal_flip(SIZE))
    assert (flipped.numpy() == ~square_pixels()[:, ::-1]).all()
    outside = crop(SIZE, -10, -20, 60, 60)
    expected = np.zeros((60, 60), dtype=bool)
    expected[20:50, 10:50] = ~square_pixels()
    assert (valid_mask([nobody], outside).numpy() == expected).all()
    turned = valid_mask([nobody], rotate(SIZE, 30.0))
    assert 0 < turned.sum() < valid_mask([], rotate(SIZE, 30.0)).sum() < 1200


def write_marked(folder: Path, x: int, y: int) -> dict[str, Any]:
    """A record of a black image with one white pixel, which is the nose; `left` lies outside of what a crop shows."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[y, x] = 255
    Image.fromarray(image).save(folder / "dot.png")
    person = {
        "id": 1, "bbox": [0.0, 0.0, 160.0, 120.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0,
        "area": 5000.0, "keypoints": [x + 0.5, y + 0.5, 2, 1.5, 1.5, 1, 0, 0, 0],
    }  # fmt: skip
    return {"file_name": str(folder / "dot.png"), "height": 120, "width": 160, "image_id": 1, "annotations": [person]}


@pytest.mark.parametrize("flips", [0.0, 1.0])
def test_labels_follow_a_white_pixel_exactly(tmp_path: Path, flips: float) -> None:
    record = write_marked(tmp_path, 4 * 11, 4 * 7)
    pipeline = DenseImage(is_train=True, augmentations=[RandomFlip(flips)], skeleton=TOY_SKELETON)
    sample = pipeline.sample(record, np.random.default_rng(0))
    y, x = (sample["image"][0] == 255).nonzero()[0].tolist()
    nose = sample["instances"].gt_keypoints.tensor[0, 0].tolist()
    assert nose == [x + 0.5, y + 0.5, 2]
    assert (x, y) == (4 * 11 if flips == 0 else 160 - 1 - 4 * 11, 4 * 7)


def test_a_turned_square_moves_pixels_keypoints_and_areas_alike(tmp_path: Path) -> None:
    record = write_marked(tmp_path, 80, 60)
    # Enlarged: the white pixel becomes a soft spot, whose center is found to a fraction of a pixel.
    augmentations = [RandomSquare(256, (0.75, 0.75), 0.1, 30.0), RandomFlip(0.5)]
    pipeline = DenseImage(is_train=True, augmentations=augmentations, skeleton=TOY_SKELETON)
    for seed in range(6):
        sample = pipeline.sample(record, np.random.default_rng(seed))
        light_HW = sample["image"][0].double()
        y_H1, x_W = torch.arange(256.0)[:, None] + 0.5, torch.arange(256.0) + 0.5
        found = [(light_HW * x_W).sum() / light_HW.sum(), (light_HW * y_H1).sum() / light_HW.sum()]
        instances = sample["instances"]
        np.testing.assert_allclose(instances.gt_keypoints.tensor[0, 0, :2], found, atol=0.1)
        zoom = 256 / (0.75 * 120)
        np.testing.assert_allclose(instances.gt_areas, [5000 * zoom**2], rtol=1e-5)
        left_or_right = instances.gt_keypoints.tensor[0, 1:]
        assert (left_or_right[:, 2] == 1).sum() == 1  # kept, though outside the square
        mask_HW = sample["valid_mask"]
        assert mask_HW.shape == (256, 256)
        assert mask_HW[128, 128]


def test_images_need_a_labeled_keypoint_of_a_person_to_be_trained_on(tmp_path: Path) -> None:
    nobody = toy_annotation(id=3, image_id=2, keypoints=[0] * 9, num_keypoints=0, segmentation=[[1, 1, 9, 1, 9, 9]])
    document = toy_document()
    document["annotations"].append(nobody)
    json_file, images = write_dataset(tmp_path, document)
    register_pose_dataset("dense_toy", json_file, images, TOY_SKELETON)
    options: dict[str, Any] = {"is_train": True, "skeleton": TOY_SKELETON}
    required = DenseImage(require_persons=True, **options).records(["dense_toy"])
    every = DenseImage(**options).records(["dense_toy"])
    assert [record["image_id"] for record in required] == [7]
    assert [record["image_id"] for record in every] == [2, 7]
    mask_HW = DenseImage(**options).sample(every[1], np.random.default_rng(0))["valid_mask"]
    assert not mask_HW[:10].any()  # the crowd's box
    assert mask_HW[10:].all()
    json_file.write_text(json.dumps({**document, "annotations": [nobody]}))
    with pytest.raises(DatasetError, match="has a person with a labeled keypoint"):
        DenseImage(require_persons=True, **options).records(["dense_toy"])


def test_the_canvas_has_the_image_in_its_middle() -> None:
    overrides = ["INPUT.PIPELINE", "dense_image", "INPUT.MIN_SIZE_TEST", "512"]
    pipeline = build_pipeline(load_config(None, overrides), is_train=False)
    image = np.full((480, 640, 3), 200, np.uint8)
    sample = pipeline.sample(pipeline.records_of_image((480, 640))[0], np.random.default_rng(0), image)
    assert sample["image"].shape == (3, 512, 704)
    lit_W = (sample["image"][0] > 100).all(0).nonzero()[:, 0]
    assert (lit_W[0], 704 - 1 - lit_W[-1]) == (11, 11)
    np.testing.assert_allclose(sample["frame"].apply_coords(np.array([320, 240])), [352, 256])
    np.testing.assert_allclose(sample["frame"].inverse().apply_coords(np.array([352, 256])), [320, 240])
    assert "valid_mask" not in sample


def test_without_a_list_of_augmentations_it_trains_as_whole_images_do() -> None:
    overrides = ["DATASETS.TRAIN", "['keypoints_coco_2017_val']"]
    dense, whole = (
        build_pipeline(load_config(None, [*overrides, "INPUT.PIPELINE", name]), is_train=True)
        for name in ("dense_image", "whole_image")
    )
    assert dense.augmentations == whole.augmentations


@pytest.mark.parametrize(
    ("size", "canvas"),
    [((480, 640), (512, 704)), ((640, 480), (704, 512)), ((100, 100), (512, 512)), ((100, 125), (512, 640))],
)
def test_canvases(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    drawn = CenteredCanvas(512).draw(size, np.random.default_rng(0))
    assert drawn.output_size == canvas
    assert CenteredCanvas(0, 1).draw(size, np.random.default_rng(0)).output_size == size


@pytest.mark.parametrize(
    ("segmentation", "kept"),
    [
        ([[1, 1, 9, 1, 9, 9]], True),
        ({"size": [30, 40], "counts": [1200]}, True),
        ([[1, 1, 9, 1]], False),
        ([[1, 1, 9, 1, 9, None]], False),
        ({"size": [40, 30], "counts": [1200]}, False),
        ({"size": [30, 40], "counts": [1, 2]}, False),
        ("no list", False),
    ],
)
def test_a_segmentation_is_read_or_a_warning(tmp_path: Path, segmentation: Any, kept: bool) -> None:
    document = toy_document()
    document["annotations"][0]["segmentation"] = "of a person with keypoints, whose segmentation nobody reads"
    document["annotations"][1]["segmentation"] = segmentation
    json_file, images = write_dataset(tmp_path, document)
    problems = read_annotations(json_file, images, TOY_SKELETON).problems
    assert [(problem.severity, problem.kind) for problem in problems] == (
        [] if kept else [("warning", "segmentation that is none")]
    )
    person, region = read_records(json_file, images)[1]["annotations"]
    assert "segmentation" not in person
    assert region.get("segmentation") == (segmentation if kept else None)
    assert person["area"] == 159.0
