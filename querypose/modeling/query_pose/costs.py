"""The cost of a match between a query and a person: the terms of the bipartite matching (Sec. 3.4).

Predictions may have a leading dimension of stages, (S, B, Q); the costs then have it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from querypose.layers import generalized_box_iou


def focal_cost(logits_BQ: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss as person less focal loss as background, (B, Q): the lower, the more the query claims a person."""
    probability_BQ = logits_BQ.sigmoid()
    background_BQ = (1 - alpha) * probability_BQ**gamma * -torch.log(1 - probability_BQ + 1e-8)
    person_BQ = alpha * (1 - probability_BQ) ** gamma * -torch.log(probability_BQ + 1e-8)
    return person_BQ - background_BQ


def box_l1_cost(boxes_BQ4: Tensor, person_boxes_BG4: Tensor, image_size_B4: Tensor) -> Tensor:
    """L1 distance (B, Q, G) of corners in units of the unpadded image's width and height."""
    scale_B14 = image_size_B4[:, None]
    return torch.cdist(boxes_BQ4 / scale_B14, person_boxes_BG4 / scale_B14, p=1)


def box_giou_cost(boxes_BQ4: Tensor, person_boxes_BG4: Tensor) -> Tensor:
    """Negative generalized IoU (B, Q, G) of corners in pixels."""
    return -generalized_box_iou(boxes_BQ4[..., :, None, :], person_boxes_BG4[:, None])
