"""Finishing steps against cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from querypose.config import ConfigError, build_part
from querypose.evaluation import FINISHING_REGISTRY, Poses
from querypose.evaluation.finishing import oks_nms, pose_nms, rescore
from tests.data.toy_dataset import TOY_SKELETON

AREA = 100.0


def make_poses(left: list[float], scores: list[float], area: float = AREA) -> Poses:
    """Poses of which all three keypoints are at (left, 0), in boxes of that area."""
    keypoints = np.zeros((len(left), 3, 3))
    keypoints[:, :, 0] = np.array(left)[:, None]
    side = math.sqrt(area)
    boxes = np.array([[x, 0, side, side] for x in left]).reshape(-1, 4)
    return Poses(keypoints, np.array(scores), boxes)


def distance_of_oks(oks: float, area: float = AREA) -> float:
    """exp(-d² / (2 area (2 sigma)²)) = oks for the sigma 0.1 of the toy skeleton."""
    return math.sqrt(-2 * math.log(oks) * area) * 2 * 0.1


def left_of(poses: Poses) -> list[float]:
    return [float(x) for x in poses.keypoints[:, 0, 0]]


def test_score_is_multiplied_by_the_mean_of_the_keypoints_above_the_threshold() -> None:
    keypoint_scores = [[0.9, 0.5, 0.1], [0.3, 0.3, 0.3], [0.2, 0.1, 0.0]]
    keypoints = np.zeros((3, 3, 3))
    keypoints[..., 2] = keypoint_scores
    poses = Poses(keypoints, np.array([0.5, 1.0, 0.8]))
    rescored = rescore(threshold=0.2)(poses)
    np.testing.assert_allclose(rescored.scores, [0.5 * 0.7, 0.3, 0.0])  # of the last none is above 0.2
    np.testing.assert_allclose(rescore(threshold=-1.0)(poses).scores, [0.25, 0.3, 0.08])
    assert poses.scores.tolist() == [0.5, 1.0, 0.8]
    assert rescored.keypoints is poses.keypoints


@pytest.mark.parametrize(("oks", "kept"), [(0.89, 2), (0.91, 1)])
def test_a_pose_like_a_better_one_is_removed(oks: float, kept: int) -> None:
    poses = make_poses([0.0, distance_of_oks(oks)], [0.5, 0.9])
    finished = oks_nms(TOY_SKELETON, threshold=0.9)(poses)
    assert len(finished) == kept
    assert finished.scores[0] == 0.9  # the better one, though it came second


def test_what_a_removed_pose_is_like_stays() -> None:
    # Each is like its neighbor; the middle one goes with the best, the last is like the middle one alone.
    step = distance_of_oks(0.92)
    poses = make_poses([0.0, step, 2 * step], [0.9, 0.8, 0.7])
    assert left_of(oks_nms(TOY_SKELETON, threshold=0.9)(poses)) == [0.0, 2 * step]


def test_areas_are_averaged_and_those_of_keypoints_stand_in_for_boxes() -> None:
    poses = make_poses([0.0, distance_of_oks(0.9, (100.0 + 300.0) / 2)], [0.9, 0.8])
    assert poses.boxes_xywh is not None
    poses.boxes_xywh[1, 2:] = math.sqrt(300.0)
    assert len(oks_nms(TOY_SKELETON, threshold=0.8999)(poses)) == 1
    assert len(oks_nms(TOY_SKELETON, threshold=0.9001)(poses)) == 2
    keypoints: NDArray[np.float64] = np.array([[[0, 0, 1], [4, 0, 1], [4, 3, 1]]], dtype=np.float64)
    assert Poses(keypoints, np.ones(1)).areas.tolist() == [12.0]


def test_number_of_poses_is_bounded_after_the_removal() -> None:
    poses = make_poses([0.0, 0.0, 50.0, 90.0], [0.9, 0.8, 0.7, 0.6])
    assert left_of(oks_nms(TOY_SKELETON, max_poses=2)(poses)) == [0.0, 50.0]
    assert left_of(oks_nms(TOY_SKELETON)(poses)) == [0.0, 50.0, 90.0]


@pytest.mark.parametrize("step", [rescore(), oks_nms(TOY_SKELETON), pose_nms()])
def test_no_poses(step: Any) -> None:
    assert len(step(Poses(np.zeros((0, 3, 3)), np.zeros(0)))) == 0


def test_equals_a_loop_over_pairs() -> None:
    random = np.random.default_rng(0)
    keypoints = random.uniform(0, 30, (40, 3, 3))
    keypoints[20:] = keypoints[:20] + random.normal(0, 0.6, (20, 3, 3))
    poses = Poses(keypoints, random.integers(1, 9, 40) / 9)
    kept: list[int] = []
    for index in np.argsort(-poses.scores, kind="stable").tolist():
        similarities = [
            np.mean([
                math.exp(-sum((keypoints[index, k, :2] - keypoints[other, k, :2]) ** 2)
                         / (2 * (poses.areas[index] + poses.areas[other]) / 2 * 0.2**2))
                for k in range(3)
            ])
            for other in kept
        ]  # fmt: skip
        if all(similarity <= 0.7 for similarity in similarities):
            kept.append(index)
    assert 20 <= len(kept) < 40
    np.testing.assert_array_equal(oks_nms(TOY_SKELETON, threshold=0.7)(poses).keypoints, keypoints[kept])


def moved_poses(moved: list[list[float]], scores: list[float]) -> Poses:
    """Poses of four keypoints at the corners of a 30x40 rectangle, each moved to the right by so many pixels."""
    keypoints = np.zeros((len(moved), 4, 3))
    keypoints[:, :, :2] = [[0, 0], [30, 0], [30, 40], [0, 40]]
    keypoints[:, :, 0] += moved
    return Poses(keypoints, np.array(scores))


@pytest.mark.parametrize(
    ("moved", "kept"),
    [
        ([2.4, 2.4, 2.4, 2.4], 1),  # a twentieth of the diagonal is 2.5
        ([2.6, 2.6, 2.6, 2.6], 2),
        ([2.4, 2.4, 2.4, 9.0], 1),
        ([2.4, 2.4, 9.0, 9.0], 2),  # half of them is not more than half
    ],
)
def test_a_pose_of_which_most_keypoints_are_near_those_of_a_better_one_is_removed(
    moved: list[float], kept: int
) -> None:
    finished = pose_nms()(moved_poses([moved, [0.0] * 4], [0.5, 0.9]))
    assert len(finished) == kept
    assert finished.scores[0] == 0.9


def test_nearness_goes_by_the_better_pose_and_what_a_removed_one_is_near_stays() -> None:
    step = 2.4
    poses = moved_poses([[0.0] * 4, [step] * 4, [2 * step] * 4], [0.9, 0.8, 0.7])
    assert pose_nms()(poses).scores.tolist() == [0.9, 0.7]
    assert pose_nms(distance=0.15)(poses).scores.tolist() == [0.9]
    larger = moved_poses([[0.0, 70.0, 70.0, 0.0], [4.0] * 4], [0.8, 0.9])
    larger.keypoints[1] = larger.keypoints[0] + [4, 0, 0]  # a diagonal of 107.7, of which a twentieth is 5.4
    assert len(pose_nms()(larger)) == 1


def test_pose_nms_bounds_the_number_of_poses_and_refuses_less_than_nothing() -> None:
    poses = moved_poses([[0.0] * 4, [50.0] * 4, [0.0] * 4, [100.0] * 4], [0.9, 0.8, 0.7, 0.6])
    assert pose_nms(max_poses=2)(poses).scores.tolist() == [0.9, 0.8]
    assert len(pose_nms(max_poses=0)(poses)) == 3
    with pytest.raises(ConfigError, match=r"'distance' with -0\.1; allowed: distance: a number >= 0"):
        build_part(FINISHING_REGISTRY, {"name": "pose_nms", "distance": -0.1}, "TEST.FINISHING[0]")


def test_arguments_are_those_of_yaml() -> None:
    entry = {"name": "oks_nms", "threshold": 0.5, "max_poses": -1}
    with pytest.raises(ConfigError, match="'max_poses' with -1; allowed: max_poses: a number >= 0 = 0"):
        build_part(FINISHING_REGISTRY, entry, "TEST.FINISHING[0]", skeleton=TOY_SKELETON)
    step = build_part(
        FINISHING_REGISTRY, {"name": "rescore", "threshold": 0}, "TEST.FINISHING[0]", skeleton=TOY_SKELETON
    )
    assert len(step(make_poses([1.0], [0.5]))) == 1
