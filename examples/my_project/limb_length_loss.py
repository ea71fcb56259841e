"""A loss term for QueryPose: predicted limbs are to be as long as annotated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from querypose.config import Key, add_keys, at_least
from querypose.d2 import CfgNode
from querypose.modeling import LossTerm, PersonTargets
from querypose.modeling.query_pose import QUERY_POSE_LOSS_REGISTRY, StagePrediction
from querypose.skeleton import Skeleton

add_keys([Key("MODEL.QUERYPOSE.LOSS.LIMB_LENGTH_WEIGHT", 0.5, "weight of loss_limb_length", at_least(0))])


@QUERY_POSE_LOSS_REGISTRY.register(name="limb_length")
class LimbLengthLoss(LossTerm):
    """L1 distance of the lengths of the skeleton's edges at the last stage, as shares of the predicted box."""

    def __init__(self, skeleton: Skeleton, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("edge_E2", torch.tensor(skeleton.edges, dtype=torch.long).view(-1, 2), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The argument that YAML states."""
        return {"weight": cfg.MODEL.QUERYPOSE.LOSS.LIMB_LENGTH_WEIGHT}

    def forward(
        self, *, stages: Sequence[StagePrediction], targets: PersonTargets, normalizers: Mapping[str, Tensor], **_: Any
    ) -> Tensor:
        """A sum over the matched persons, divided by the number of persons."""
        stage, matches = stages[-1], stages[-1].matches
        boxes_R4 = stage.boxes_BQ4[matches.image_R, matches.query_R].detach()
        size_R1D = (boxes_R4[:, None, 2:] - boxes_R4[:, None, :2]).clamp(min=1)
        keypoints_RKD = targets.keypoints_BGKD[matches.image_R, matches.person_R] / size_R1D
        is_labeled_RK = targets.labelled_BGK[matches.image_R, matches.person_R]
        is_labeled_RE = is_labeled_RK[:, self.edge_E2].all(-1)
        error_RE = (self._lengths(stage.mean_RKD.float()) - self._lengths(keypoints_RKD)).abs()
        # An unlabeled keypoint may lie anywhere; a product with False would keep its NaN.
        loss = torch.where(is_labeled_RE, error_RE, 0.0).sum()
        return self.weight * loss / normalizers["persons"].clamp(min=1)

    def _lengths(self, keypoints_RKD: Tensor) -> Tensor:
        difference_RED = keypoints_RKD[:, self.edge_E2[:, 0]] - keypoints_RKD[:, self.edge_E2[:, 1]]
        # The gradient of a norm is NaN at zero.
        return (difference_RED.square().sum(-1) + 1e-12).sqrt()
