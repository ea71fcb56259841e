"""A metric: PCK, the share of annotated keypoints that a detection finds."""

from __future__ import annotations

import numpy as np

from querypose.data.coco import PoseAnnotations
from querypose.evaluation import METRIC_REGISTRY, Detections

# How near is near, as shares of the longer side of the annotated box.
THRESHOLDS = {"PCK10": 0.1, "PCK20": 0.2}


@METRIC_REGISTRY.register()
def pck(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
    """Percent of the labeled keypoints that the best detection of their instance puts near them."""
    distances = []
    for image in range(len(annotations.image_ids)):
        poses_NKD = detections.of_image(image).keypoints[..., :2]
        place = annotations.of_image(image)
        for keypoints_K3, box_4 in zip(annotations.keypoints[place], annotations.boxes_xywh[place], strict=True):
            is_labeled_K = keypoints_K3[:, 2] > 0
            if not is_labeled_K.any():
                continue
            of_poses_NK = np.linalg.norm(poses_NKD - keypoints_K3[:, :2], axis=-1)[:, is_labeled_K]
            nearest_K = min(of_poses_NK, key=np.mean, default=np.full(is_labeled_K.sum(), np.inf))
            distances.append(nearest_K / max(box_4[2:]))
    if not distances:
        return dict.fromkeys(THRESHOLDS, float("nan"))
    distances_L = np.concatenate(distances)
    return {name: 100 * float(np.mean(distances_L < threshold)) for name, threshold in THRESHOLDS.items()}
