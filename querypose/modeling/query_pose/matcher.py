"""QueryPose's bipartite matching by class, box and generalized IoU costs (Sec. 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from querypose.layers import at_least_float32, full_precision
from querypose.modeling.assignment import assign_queries
from querypose.modeling.query_pose.costs import box_giou_cost, box_l1_cost, focal_cost
from querypose.modeling.targets import Matches, PersonTargets


class HungarianMatcher:
    """Finds for every image the assignment of least total cost.

    Args:
        class_weight: of the focal cost.
        bbox_weight: of the L1 cost.
        giou_weight: of the generalized IoU cost.
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
            targets: the persons. If an image has more persons than queries, some persons have no match.

        Returns:
            the matches of every stage, equally many.
        """
        with full_precision(boxes_SBQ4):
            cost_SBQG = self.cost(at_least_float32(logits_SBQ), at_least_float32(boxes_SBQ4), targets)
        return assign_queries(cost_SBQG, targets.counts)

    def cost(self, logits_BQ: Tensor, boxes_BQ4: Tensor, targets: PersonTargets) -> Tensor:
        """The cost (B, Q, G) of every query for every person of its image; leading dimensions stay."""
        class_BQ1 = focal_cost(logits_BQ, self.focal_alpha, self.focal_gamma)[..., None]
        l1_BQG = box_l1_cost(boxes_BQ4, targets.boxes_BG4, targets.image_size_B4)
        giou_BQG = box_giou_cost(boxes_BQ4, targets.boxes_BG4)
        return self.bbox_weight * l1_BQG + self.class_weight * class_BQ1 + self.giou_weight * giou_BQG
