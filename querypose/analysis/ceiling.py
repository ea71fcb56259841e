"""What AP a dataset allows: its own labels, disturbed on purpose and scored as predictions.

AP says little about a model as long as nobody knows what an error of a pixel costs on these pictures. Each row disturbs
the labels in one way and leaves everything else perfect, so that the row is the most that a model with this one fault
can reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from querypose.data.coco import PoseAnnotations
from querypose.evaluation.detections import Detections, Poses
from querypose.evaluation.early_metrics import progress
from querypose.evaluation.oks import coco

NOISES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SWAPPED_SHARES = (0.1, 0.2, 0.5)
HIDDEN_NOISES = (4.0, 8.0)
BYSTANDER_SHARES = (0.1, 0.3, 0.5)


@dataclass(frozen=True)
class Ceiling:
    """One fault, and the metrics in percent of predictions that have no other."""

    fault: str
    AP: float
    AP50: float
    AP75: float
    OKS: float


def ceilings(annotations: PoseAnnotations, scale: float = 1.0, seed: int = 0) -> list[Ceiling]:
    """Of a dataset, a row for each fault.

    Args:
        annotations: of the dataset.
        scale: pixels of the model's input a pixel of the files; errors are in pixels of the input.
        seed: of the noise.
    """
    rows = []
    for fault, detections in _disturbed(annotations, scale, np.random.default_rng(seed)):
        metrics = coco(annotations, detections)
        oks = progress(annotations, detections)["OKS"]
        rows.append(Ceiling(fault, metrics["AP"], metrics["AP50"], metrics["AP75"], oks))
    return rows


def _disturbed(
    annotations: PoseAnnotations, scale: float, generator: np.random.Generator
) -> Iterator[tuple[str, Detections]]:
    labels_GK3, boxes_G4 = annotations.keypoints, annotations.boxes_xywh
    is_pose_G = ~annotations.is_crowd & (labels_GK3[..., 2] > 0).any(axis=1)
    images_N, labels_NK3, boxes_N4 = annotations.image_indices[is_pose_G], labels_GK3[is_pose_G], boxes_G4[is_pose_G]
    truth = Poses(np.concatenate([labels_NK3[..., :2], np.ones_like(labels_NK3[..., :1])], axis=-1),
                  np.ones(len(labels_NK3)), boxes_N4)  # fmt: skip

    def moved(xy_NK2: NDArray[np.float64]) -> Detections:
        return Detections(images_N, replace(truth, keypoints=np.concatenate([xy_NK2, truth.keypoints[..., 2:]], -1)))

    xy_NK2 = labels_NK3[..., :2]
    noise_NK2 = generator.standard_normal(xy_NK2.shape) / scale
    yield "nothing", Detections(images_N, truth)
    for pixels in NOISES:
        yield f"noise of {pixels:g} px an axis", moved(xy_NK2 + pixels * noise_NK2)
    if annotations.skeleton.flip_pairs:
        order_N = generator.permutation(len(xy_NK2))
        swapped_NK2 = xy_NK2[:, list(annotations.skeleton.flip_indices)]
        for share in SWAPPED_SHARES:
            is_swapped_N = (order_N < share * len(order_N))[:, None, None]
            yield (
                f"left and right swapped for {share:.0%} of the persons",
                moved(np.where(is_swapped_N, swapped_NK2, xy_NK2)),
            )
    is_hidden_NK1 = labels_NK3[..., 2:] == 1
    if is_hidden_NK1.any():
        for pixels in HIDDEN_NOISES:
            yield f"hidden keypoints alone: noise of {pixels:g} px", moved(xy_NK2 + pixels * noise_NK2 * is_hidden_NK1)
    corner_N12, size_N12 = boxes_N4[:, None, :2], np.maximum(boxes_N4[:, None, 2:], 1e-6)
    is_labeled_NK1 = labels_NK3[..., 2:] > 0
    in_box_NK2 = np.where(is_labeled_NK1, (xy_NK2 - corner_N12) / size_N12, 0)
    mean_K2 = in_box_NK2.sum(axis=0) / np.maximum(is_labeled_NK1.sum(axis=0), 1)
    yield "the mean pose in the true box", moved(corner_N12 + mean_K2 * size_N12)
    for share in BYSTANDER_SHARES:
        yield (
            f"an unlabeled person found in {share:.0%} of the images",
            _with_bystanders(annotations, Detections(images_N, truth), share, generator),
        )


def _with_bystanders(
    annotations: PoseAnnotations, detections: Detections, share: float, generator: np.random.Generator
) -> Detections:
    """One more pose, far from everybody and as sure as the others, in some of the images."""
    num_images = len(annotations.image_ids)
    chosen = np.sort(generator.permutation(num_images)[: round(share * num_images)])
    count = min(len(chosen), len(detections.poses))
    extra = detections.poses[:count]
    away = np.array([10.0 * annotations.sizes_hw[:, 1].max(), 0.0])
    assert extra.boxes_xywh is not None
    extra = replace(
        extra,
        keypoints=extra.keypoints + np.array([*away, 0.0]),
        boxes_xywh=extra.boxes_xywh + np.array([*away, 0.0, 0.0]),
    )
    images = np.concatenate([detections.image_indices, chosen[:count]])
    order = np.argsort(images, kind="stable")
    poses = Poses.joined([detections.poses, extra], annotations.skeleton.num_keypoints)
    # Scores tie; in a random order, as sure ones are, a false one comes as early as a true one.
    return Detections(images[order], replace(poses, scores=generator.random(len(poses)))[order])
