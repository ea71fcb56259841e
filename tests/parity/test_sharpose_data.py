"""The data of SHaRPose beside MMPose's: boxes, warps, flips, half bodies, rescoring and OKS-NMS."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from querypose.data.augmentations import RandomHalfBody, augment
from querypose.data.pipelines import PersonCrops
from querypose.data.transforms import GeometricTransform, box_to_canvas, horizontal_flip, rotate
from querypose.evaluation.detections import Poses
from querypose.evaluation.finishing import oks_nms, rescore
from querypose.skeleton import COCO_SKELETON
from tests.parity.stored import FIXTURES, read_arrays

FIXTURE = read_arrays(FIXTURES / "sharpose_udp.xz")
# The center of the first pixel is 0 there, and 0.5 here.
HALF_PIXEL = 0.5
PIXELS_PER_SCALE = 200


def crop_center_and_extent(frame: GeometricTransform) -> tuple[NDArray, NDArray]:
    """Of the part of the image that fills the canvas of an upright frame."""
    height, width = frame.output_size
    low, high = frame.inverse().apply_coords(np.array([[0, 0], [width, height]]))
    return (low + high) / 2, high - low


@pytest.mark.parametrize(("case", "size"), [("192x256", (256, 192)), ("256x256", (256, 256))])
def test_boxes(case: str, size: tuple[int, int]) -> None:
    """Their center counts as a pixel's index, ours as continuous: half a pixel, to which no result is sensitive."""
    for (x, y, width, height), center, scale in zip(
        FIXTURE["box.xywh"], FIXTURE[f"box_{case}.center"], FIXTURE[f"box_{case}.scale"], strict=True
    ):
        frame = box_to_canvas((1000, 1000), [x, y, x + width, y + height], size, padding=1.25)
        found_center, found_extent = crop_center_and_extent(frame)
        np.testing.assert_allclose(found_center, center, atol=1e-4)
        np.testing.assert_allclose(found_extent, scale * PIXELS_PER_SCALE, rtol=1e-5)


@pytest.mark.parametrize("case", range(3))
def test_warps(case: str) -> None:
    image, (width, height) = FIXTURE["warp.image"], FIXTURE["warp.out_wh"].tolist()
    half_D = FIXTURE["warp.scale"] * PIXELS_PER_SCALE / 2
    center_D = FIXTURE["warp.center"] + HALF_PIXEL
    pipeline = PersonCrops(is_train=False, size=(height, width), padding=1.0, unbiased=True, antialias=False)
    size = (height, width)
    turned = box_to_canvas(image.shape[:2], [*(center_D - half_D), *(center_D + half_D)], size, 1.0).then(
        rotate(size, float(FIXTURE["warp.theta_deg"][case]))
    )
    pixels, frame = augment(
        image.copy(), turned, pipeline.augmentations, np.random.default_rng(0), antialias=pipeline.antialias
    )
    points = frame.apply_coords(FIXTURE["warp.points"] + HALF_PIXEL) - HALF_PIXEL
    np.testing.assert_allclose(points, FIXTURE[f"warp{case}.points"], atol=1e-3)
    np.testing.assert_allclose(frame.matrix[:, :2], FIXTURE[f"warp{case}.matrix"][:, :2], atol=2e-5)
    difference = pixels.permute(1, 2, 0).numpy().astype(int) - FIXTURE[f"warp{case}.image"]
    assert np.abs(difference).max() <= 2


def test_flip() -> None:
    width, joints, visible = int(FIXTURE["fliplr.width"]), FIXTURE["fliplr.joints"], FIXTURE["fliplr.visible"]
    keypoints = np.concatenate([joints[:, :2] + HALF_PIXEL, 2 * visible[:, :1]], axis=1)[None]
    flipped = horizontal_flip((50, width)).apply_keypoints(keypoints, COCO_SKELETON.flip_indices, keep_outside=True)[0]
    is_visible = flipped[:, 2] > 0
    expected = FIXTURE["fliplr.out_joints"]
    np.testing.assert_allclose(flipped[is_visible, :2] - HALF_PIXEL, expected[is_visible, :2])
    assert not expected[~is_visible].any()


@pytest.mark.parametrize("half", ["upper", "lower"])
def test_half_bodies(half: str) -> None:
    canvas = (256, 192)
    person_K3 = np.concatenate([FIXTURE["halfbody.joints"][:, :2], 2 * FIXTURE["halfbody.visible"][:, :1]], axis=1)
    augmentation = RandomHalfBody(probability=1.0, upper_probability=float(half == "upper"))
    frame = augmentation.draw_for(person_K3, COCO_SKELETON, canvas, np.random.default_rng(0))
    center_D, extent_D = crop_center_and_extent(frame)
    np.testing.assert_allclose(center_D, FIXTURE[f"halfbody.{half}_center"], atol=1e-4)
    np.testing.assert_allclose(extent_D, FIXTURE[f"halfbody.{half}_scale"] * PIXELS_PER_SCALE, rtol=1e-5)


def test_rescoring_and_oks_nms() -> None:
    """Every pose has one name, its first score."""
    keypoints = FIXTURE["nms.keypoints"].astype(np.float64)
    poses = Poses(keypoints, FIXTURE["nms.box_score"], person_areas=FIXTURE["nms.area"].astype(np.float64))
    rescored = rescore(threshold=0.2)(poses)
    np.testing.assert_allclose(rescored.scores, FIXTURE["nms.rescored"], atol=1e-6)
    kept = oks_nms(COCO_SKELETON, threshold=0.9)(rescored)
    expected = FIXTURE["nms.keep"]
    np.testing.assert_array_equal(kept.keypoints, keypoints[expected])
    np.testing.assert_array_equal(kept.scores, rescored.scores[expected])
