"""PCKh: the share of keypoints that are found to within half the size of the head (MPII)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from querypose.data.coco import PoseAnnotations
from querypose.evaluation.detections import Detections, EvaluationError
from querypose.evaluation.metrics import METRIC_REGISTRY
from querypose.skeleton import Skeleton

# Their positions follow from other keypoints; MPII's protocol leaves them out of the mean.
EXCLUDED = ("pelvis", "thorax")
THRESHOLD, STRICT_THRESHOLD = 0.5, 0.1


@METRIC_REGISTRY.register()
def pckh(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
    """The share of labeled keypoints within half a head's size of their place, in percent.

    A head's size is `head_size` of the annotation (MPII: 0.6 of the diagonal of its rectangle), or without one the
    distance of the two ends of the skeleton's `head_segment`; persons without either do not count. Of an image with N
    persons the N poses with the best scores count, each for the person that it is near to; a person without a pose is
    missed in all keypoints.

    Returns:
        `PCKh`, over all keypoints but pelvis and thorax; `PCKh@0.1`, to within a tenth; and PCKh of each keypoint, left
        and right together (`PCKh knee` is their mean).

    Raises:
        EvaluationError: no person has a head size.
    """
    skeleton = annotations.skeleton
    head_sizes_N = _head_sizes(annotations)
    is_counted_N = np.isfinite(head_sizes_N) & (head_sizes_N > 0) & ~annotations.is_crowd
    if len(annotations.ids) and not is_counted_N.any():
        raise EvaluationError(
            f"{annotations.path}: PCKh needs the size of heads, and no annotation has 'head_size', nor both ends of a "
            f"head_segment of skeleton {skeleton.name!r}",
            "use another metric, or write head_size into the annotations",
        )
    error_NK = np.full((len(annotations.ids), skeleton.num_keypoints), np.inf)
    for image in np.unique(annotations.image_indices).tolist():
        persons = np.arange(len(annotations.ids))[annotations.of_image(image)]
        persons = persons[is_counted_N[persons]]
        poses = detections.of_image(image)
        best = np.argsort(-poses.scores, kind="stable")[: len(persons)]
        truth_G1K3, xy_PK2 = annotations.keypoints[persons][:, None], poses.keypoints[best][..., :2]
        distance_GPK = np.linalg.norm(xy_PK2 - truth_G1K3[..., :2], axis=-1) / head_sizes_N[persons, None, None]
        is_labeled_G1K = truth_G1K3[..., 2] > 0
        mean_GP = (distance_GPK * is_labeled_G1K).sum(-1) / np.maximum(is_labeled_G1K.sum(-1), 1)
        person_R, pose_R = linear_sum_assignment(mean_GP)
        error_NK[persons[person_R]] = distance_GPK[person_R, pose_R]
    is_labeled_NK = (annotations.keypoints[..., 2] > 0) & is_counted_N[:, None]
    in_mean_K = np.array([name not in EXCLUDED for name in skeleton.keypoints])

    def share(threshold: float, keypoints: NDArray[np.bool_] | list[int]) -> float:
        is_labeled = is_labeled_NK[:, keypoints]
        found = (error_NK[:, keypoints] <= threshold) & is_labeled
        return 100.0 * float(found.sum()) / num if (num := int(is_labeled.sum())) else float("nan")

    return {
        "PCKh": share(THRESHOLD, in_mean_K),
        f"PCKh@{STRICT_THRESHOLD}": share(STRICT_THRESHOLD, in_mean_K),
        **{
            f"PCKh {name}": float(np.mean([share(THRESHOLD, [keypoint]) for keypoint in keypoints]))
            for name, keypoints in _sides_together(skeleton).items()
        },
    }


def _head_sizes(annotations: PoseAnnotations) -> NDArray[np.float64]:
    """Of every person (N), in pixels; NaN where it is not known."""
    if annotations.skeleton.head_segment is None:
        return annotations.head_sizes
    top, bottom = (annotations.keypoints[:, keypoint] for keypoint in annotations.skeleton.head_segment)
    length_N = np.linalg.norm(top[:, :2] - bottom[:, :2], axis=-1)
    is_labeled_N = (top[:, 2] > 0) & (bottom[:, 2] > 0)
    return np.where(np.isnan(annotations.head_sizes) & is_labeled_N, length_N, annotations.head_sizes)


def _sides_together(skeleton: Skeleton) -> dict[str, list[int]]:
    """The keypoints by name; both of a flip pair under what their names have in common."""
    groups: dict[str, list[int]] = {}
    partner = {left: right for pair in skeleton.flip_pairs for left, right in (pair, pair[::-1])}
    for keypoint, name in enumerate(skeleton.keypoints):
        if keypoint in partner:
            words = [word for word in name.split("_") if word in skeleton.keypoints[partner[keypoint]].split("_")]
            name = "_".join(words) or name
        groups.setdefault(name, []).append(keypoint)
    return groups
