"""One-to-one assignment of queries to persons."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from querypose.layers import at_least_float32, full_precision
from querypose.modeling.costs import box_giou_cost, box_l1_cost, focal_cost
from querypose.modeling.targets import Matches, PersonTargets

# Stands for a cost that is not finite, which the assignment would refuse: the last choice, whatever the weights.
WORST_COST = 1e6


class HungarianMatcher:
    """Finds for every image the assignment of least total cost.

    Args:
        class_weight: of the focal cost.
        bbox_weight: of the L1 cost.
        giou_weight: of the generalised IoU cost.
        focal_alpha: of the focal cost.
        focal_gamma: of the focal cost.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        self.class_weight = class_weight
        self.bbox_weight = bbox_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @torch.no_grad()
    def __call__(self, logits_BQ: Tensor, boxes_BQ4: Tensor, targets: PersonTargets) -> Matches:
        """Matches a stage's predictions; the costs of the whole batch cross to the host at once.

        Args:
            logits_BQ: class logit of every query.
            boxes_BQ4: predicted corners, in pixels of the padded images.
            targets: the persons; where an image has more of them than queries, some stay without.
        """
        if targets.num_persons == 0:
            return _matches([], targets, logits_BQ.device)
        with full_precision(boxes_BQ4):
            cost_BQG = self.cost(at_least_float32(logits_BQ), at_least_float32(boxes_BQ4), targets)
        # Never as a sum over images: an image's columns beyond its own persons are padding.
        host_BQG = np.nan_to_num(cost_BQG.cpu().numpy(), nan=WORST_COST, posinf=WORST_COST, neginf=-WORST_COST)
        pairs = [
            linear_sum_assignment(cost_QG[:, :count]) for cost_QG, count in zip(host_BQG, targets.counts, strict=True)
        ]
        return _matches(pairs, targets, logits_BQ.device)

    def cost(self, logits_BQ: Tensor, boxes_BQ4: Tensor, targets: PersonTargets) -> Tensor:
        """The cost (B, Q, G) of every query for every person of its image."""
        class_BQ1 = focal_cost(logits_BQ, self.focal_alpha, self.focal_gamma)[..., None]
        l1_BQG = box_l1_cost(boxes_BQ4, targets.boxes_BG4, targets.image_size_B4)
        giou_BQG = box_giou_cost(boxes_BQ4, targets.boxes_BG4)
        return self.bbox_weight * l1_BQG + self.class_weight * class_BQ1 + self.giou_weight * giou_BQG


def _matches(pairs: list[tuple[np.ndarray, np.ndarray]], targets: PersonTargets, device: torch.device) -> Matches:
    """Sorts each image's pairs by person and moves all indices to the device together."""
    columns: list[np.ndarray] = [np.zeros((4, 0), dtype=np.int64)]
    first_slot = 0
    for image, (query, person) in enumerate(pairs):
        order = person.argsort()
        query, person = query[order], person[order]
        columns.append(np.stack([np.full_like(person, image), query, person, first_slot + person]))
        first_slot += targets.counts[image]
    indices = torch.from_numpy(np.concatenate(columns, axis=1))
    image_R, query_R, person_R, slot_R = indices.to(device, non_blocking=True).unbind()
    return Matches(image_R, query_R, person_R, slot_R, is_complete=len(image_R) == targets.num_persons)
