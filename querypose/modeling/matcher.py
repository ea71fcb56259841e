"""One-to-one assignment of queries to persons."""

from __future__ import annotations

from collections.abc import Sequence

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

    def __call__(self, logits_BQ: Tensor, boxes_BQ4: Tensor, targets: PersonTargets) -> Matches:
        """The matches of one stage; see `match_stages`."""
        return self.match_stages(logits_BQ[None], boxes_BQ4[None], targets)[0]

    @torch.no_grad()
    def match_stages(self, logits_SBQ: Tensor, boxes_SBQ4: Tensor, targets: PersonTargets) -> list[Matches]:
        """Matches the predictions of each stage by themselves; all costs cross to the host at once.

        Args:
            logits_SBQ: class logit of every query.
            boxes_SBQ4: predicted corners, in pixels of the padded images.
            targets: the persons; where an image has more of them than queries, some stay without.

        Returns:
            the matches of every stage, equally many.
        """
        if targets.num_persons == 0:
            return [_no_matches(logits_SBQ.device)] * len(logits_SBQ)
        with full_precision(boxes_SBQ4):
            cost_SBQG = self.cost(at_least_float32(logits_SBQ), at_least_float32(boxes_SBQ4), targets)
        host_SBQG = np.nan_to_num(cost_SBQG.cpu().numpy(), nan=WORST_COST, posinf=WORST_COST, neginf=-WORST_COST)
        indices_S4R = torch.from_numpy(np.stack([_assign(cost_BQG, targets.counts) for cost_BQG in host_SBQG]))
        is_complete = indices_S4R.shape[2] == targets.num_persons
        matches_S = []
        for indices_4R in indices_S4R.to(logits_SBQ.device, non_blocking=True):
            image_R, query_R, person_R, slot_R = indices_4R.unbind()
            matches_S.append(Matches(image_R, query_R, person_R, slot_R, is_complete=is_complete))
        return matches_S

    def cost(self, logits_BQ: Tensor, boxes_BQ4: Tensor, targets: PersonTargets) -> Tensor:
        """The cost (B, Q, G) of every query for every person of its image; leading dimensions stay."""
        class_BQ1 = focal_cost(logits_BQ, self.focal_alpha, self.focal_gamma)[..., None]
        l1_BQG = box_l1_cost(boxes_BQ4, targets.boxes_BG4, targets.image_size_B4)
        giou_BQG = box_giou_cost(boxes_BQ4, targets.boxes_BG4)
        return self.bbox_weight * l1_BQG + self.class_weight * class_BQ1 + self.giou_weight * giou_BQG


def _assign(cost_BQG: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Image, query, person and slot (4, R) of the cheapest pairs of every image, sorted by person."""
    columns = []
    first_slot = 0
    for image, (cost_QG, count) in enumerate(zip(cost_BQG, counts, strict=True)):
        # Never as a sum over images: an image's columns beyond its own persons are padding.
        query, person = linear_sum_assignment(cost_QG[:, :count])
        order = person.argsort()
        query, person = query[order], person[order]
        columns.append(np.stack([np.full_like(person, image), query, person, first_slot + person]))
        first_slot += count
    return np.concatenate(columns, axis=1)


def _no_matches(device: torch.device) -> Matches:
    empty = torch.zeros(0, dtype=torch.long, device=device)
    return Matches(empty, empty, empty, empty, is_complete=True)
