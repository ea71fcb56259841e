"""Object keypoint similarity between predicted and annotated poses: what AP measures, as something to train on."""

from __future__ import annotations

import torch
from torch import Tensor

AREA_OF_BOX = 0.53
"""Area of a person as a share of its box, where nothing better is known (COCO's mean)."""


def keypoint_similarities(
    keypoints_RKD: Tensor, target_RKD: Tensor, person_boxes_R4: Tensor, sigmas_K: Tensor
) -> Tensor:
    """The similarity (R, K) in [0, 1] that each keypoint reaches: exp(-d² / (2 · area · (2σ)²)).

    Args:
        keypoints_RKD: predicted, in pixels.
        target_RKD: annotated, same frame.
        person_boxes_R4: corners of the annotated boxes, same frame, which give the area.
        sigmas_K: falloffs of the skeleton.
    """
    area_R1 = AREA_OF_BOX * (person_boxes_R4[:, 2:] - person_boxes_R4[:, :2]).prod(-1, keepdim=True).clamp(min=1)
    return torch.exp(-(keypoints_RKD - target_RKD).square().sum(-1) / (2 * area_R1 * (2 * sigmas_K).square()))


def mean_over_labeled(values_RK: Tensor, labeled_RK: Tensor) -> Tensor:
    """The mean (R) over the labeled keypoints of each pose; 0 where none is."""
    return torch.where(labeled_RK, values_RK, 0.0).sum(-1) / labeled_RK.sum(-1).clamp(min=1)
