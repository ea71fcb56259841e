"""PCKh: beside the authors' evaluation code, and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from querypose.data.coco import PoseAnnotations
from querypose.evaluation.detections import Detections, EvaluationError, Poses
from querypose.evaluation.pckh import pckh
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON, MPII_SKELETON, Skeleton
from tests.parity.stored import FIXTURES, read_arrays

K = MPII_SKELETON.num_keypoints


def people(
    keypoints: NDArray, image_indices: list[int], head_sizes: list[float], skeleton: Skeleton = MPII_SKELETON
) -> PoseAnnotations:
    file = PoseAnnotations("made_up.json", None, skeleton, has_annotations=True)
    file.keypoints = np.asarray(keypoints, dtype=np.float64)
    file.image_ids = list(range(max(image_indices) + 1))
    file.ids = list(range(len(image_indices)))
    file.image_indices = np.array(image_indices)
    file.is_crowd = np.zeros(len(image_indices), dtype=bool)
    file.head_sizes = np.array(head_sizes)
    return file


def detections(xy: NDArray, image_indices: list[int], scores: list[float] | None = None) -> Detections:
    keypoints = np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)
    return Detections(np.array(image_indices), Poses(keypoints, np.array(scores or [1.0] * len(xy))))


def test_the_authors_values() -> None:
    fixture = {
        name.removeprefix("pckh."): value
        for name, value in read_arrays(FIXTURES / "sharpose_udp.xz").items()
        if name.startswith("pckh.")
    }
    truth = fixture["gt_1based"].transpose(2, 0, 1) - 1
    is_labeled = 1 - fixture["missing"].T
    diagonals = np.linalg.norm(fixture["headboxes"][1] - fixture["headboxes"][0], axis=0)
    indices = list(range(len(truth)))
    found = pckh(
        people(np.concatenate([truth, 2 * is_labeled[..., None]], axis=-1), indices, list(0.6 * diagonals)),
        detections(fixture["pred_0based"].astype(np.float64), indices),
    )
    names = ("PCKh head_top", "PCKh shoulder", "PCKh elbow", "PCKh wrist", "PCKh hip", "PCKh knee", "PCKh ankle")
    expected = dict(zip((*names, "PCKh", "PCKh@0.1"), fixture["values"], strict=True))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def person(x: float = 0.0) -> NDArray:
    return np.stack([np.full(K, x), np.arange(K) * 10.0, np.full(K, 2.0)], axis=-1)


def test_distances_are_measured_in_heads_and_excluded_keypoints_do_not_count() -> None:
    xy = person()[None, :, :2].copy()
    xy[0, 0, 0] += 5.0  # half a head of 10 px: found
    xy[0, 1, 0] += 5.1
    xy[0, [6, 7], 0] += 100.0  # pelvis, thorax
    metrics = pckh(people(person()[None], [0], [10.0]), detections(xy, [0]))
    assert metrics["PCKh"] == pytest.approx(100 * 13 / 14)
    assert metrics["PCKh@0.1"] == pytest.approx(100 * 12 / 14)
    assert (metrics["PCKh ankle"], metrics["PCKh knee"], metrics["PCKh pelvis"]) == (100, 50, 0)


def test_as_many_poses_count_as_there_are_persons() -> None:
    """A worse pose with a better score counts: nobody chooses by the truth."""
    truth = people(np.stack([person(0), person(200)]), [0, 0], [10.0, 10.0])
    xy = np.stack([person(200), person(90), person(0)])[..., :2]
    assert pckh(truth, detections(xy, [0, 0, 0], [0.9, 0.1, 0.8]))["PCKh"] == 100
    assert pckh(truth, detections(xy, [0, 0, 0], [0.9, 0.8, 0.1]))["PCKh"] == 50
    assert pckh(truth, detections(xy[:1], [0]))["PCKh"] == 50
    assert pckh(truth, detections(xy[:0], []))["PCKh"] == 0


def test_head_size_from_the_skeleton() -> None:
    """The head segment of this person has 10 px; a person without it does not count."""
    headless = person(300)
    headless[9, 2] = 0
    truth = people(np.stack([person(), headless]), [0, 1], [np.nan, np.nan])
    xy = person()[None, :, :2] + np.array([4.9, 0])
    assert pckh(truth, detections(xy, [0]))["PCKh"] == 100
    assert pckh(truth, detections(xy + 0.2, [0]))["PCKh"] == 0
    assert CROWDPOSE_SKELETON.head_segment is not None


def test_without_any_head_it_is_refused() -> None:
    truth = people(np.zeros((1, 17, 3)), [0], [np.nan], COCO_SKELETON)
    with pytest.raises(EvaluationError, match=r"made_up\.json: PCKh needs the size of heads.*'coco'"):
        pckh(truth, detections(np.zeros((1, 17, 2)), [0]))
