"""Finishing steps change the poses of an image after the inference and before the metrics.

TEST.FINISHING lists them with their arguments, `[{name: rescore}, {name: oks_nms, threshold: 0.9}]`. A registered
function or class builds a step (with the `skeleton`, if it has this argument), and a step is a function from poses to
poses:

    @FINISHING_REGISTRY.register()
    def best_only(num_poses: int = 1) -> FinishingStep:
        return lambda poses: poses[np.argsort(-poses.scores, kind="stable")[:num_poses]]

By default there is none: the standard protocols use scores and poses as the model gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np

from querypose.config import at_least, between, build_part
from querypose.d2 import CfgNode, Registry
from querypose.evaluation.detections import Poses
from querypose.evaluation.oks import similarity_of_poses
from querypose.skeleton import Skeleton

FinishingStep = Callable[[Poses], Poses]

FINISHING_REGISTRY = Registry("FINISHING")

# Annotations of arguments, which are checked before anything runs.
Share = Annotated[float, between(0, 1)]
Reach = Annotated[float, at_least(0)]
Limit = Annotated[int, at_least(0)]


def build_finishing(cfg: CfgNode, skeleton: Skeleton) -> list[FinishingStep]:
    """The steps of TEST.FINISHING, in their order."""
    return [
        build_part(FINISHING_REGISTRY, entry, f"TEST.FINISHING[{index}]", skeleton=skeleton)
        for index, entry in enumerate(cfg.TEST.FINISHING)
    ]


@FINISHING_REGISTRY.register()
def rescore(threshold: Share = 0.2) -> FinishingStep:
    """Multiplies the score of a pose by the mean score of its keypoints, as top-down models do.

    Args:
        threshold: only keypoints with a score above it are averaged; a pose without one gets the score 0.
    """

    def rescored(poses: Poses) -> Poses:
        scores_NK = poses.keypoints[..., 2]
        is_counted_NK = scores_NK > threshold
        mean_N = (scores_NK * is_counted_NK).sum(axis=1) / np.maximum(is_counted_NK.sum(axis=1), 1)
        return replace(poses, scores=poses.scores * mean_N)

    return rescored


@FINISHING_REGISTRY.register()
def oks_nms(skeleton: Skeleton, threshold: Share = 0.9, max_poses: Limit = 0) -> FinishingStep:
    """Non-maximum suppression: keeps the best pose and removes those like it, then the best of the rest, and so on.

    The OKS of two poses is over all keypoints, with the mean of their areas: `Poses.person_areas`, or `Poses.areas`
    without them.

    Args:
        skeleton: gives the sigmas.
        threshold: a pose whose OKS with a better one is above it is removed.
        max_poses: how many to keep in an image at most; 0 sets no limit.
    """
    sigmas_K = np.asarray(skeleton.sigmas, dtype=np.float64)

    def without_repetitions(poses: Poses) -> Poses:
        poses = poses[np.argsort(-poses.scores, kind="stable")]
        positions_NK2 = poses.keypoints[..., :2]
        areas_N = poses.areas if poses.person_areas is None else poses.person_areas
        squared_NNK = ((positions_NK2[:, None] - positions_NK2) ** 2).sum(axis=-1)
        oks_NN = similarity_of_poses(squared_NNK, (areas_N[:, None] + areas_N) / 2, sigmas_K).mean(axis=-1)
        is_left_N = np.ones(len(poses), dtype=bool)
        kept: list[int] = []
        for index in range(len(poses)):
            if is_left_N[index]:
                kept.append(index)
                is_left_N &= oks_NN[index] <= threshold
        return poses[kept[: max_poses or None]]

    return without_repetitions


@FINISHING_REGISTRY.register()
def pose_nms(
    distance: Annotated[float, at_least(0)] = 0.05, share: Share = 0.5, max_poses: Limit = 30
) -> FinishingStep:
    """Keeps the best pose and removes those of which many keypoints are near its own, then the best of the rest, ….

    The non-maximum suppression of DEKR and other models that predict a pose at every cell.

    Args:
        distance: keypoints nearer than this share of the diagonal of the better pose's extent are near.
        share: a pose with more of its keypoints near, as a share of all, is removed.
        max_poses: how many to keep in an image at most; 0 sets no limit.
    """

    def without_repetitions(poses: Poses) -> Poses:
        poses = poses[np.argsort(-poses.scores, kind="stable")]
        positions_NKD = poses.keypoints[..., :2]
        is_left_N = np.ones(len(poses), dtype=bool)
        kept: list[int] = []
        for index in range(len(poses)):
            if not is_left_N[index]:
                continue
            kept.append(index)
            reach = distance * np.linalg.norm(np.ptp(positions_NKD[index], axis=0))
            is_near_NK = np.linalg.norm(positions_NKD - positions_NKD[index], axis=-1) < reach
            is_left_N &= is_near_NK.mean(axis=1) <= share
        return poses[kept[: max_poses or None]]

    return without_repetitions
