"""OKS as a loss for POET, beside the terms of its paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from querypose.config import Key, add_keys, at_least
from querypose.d2 import CfgNode
from querypose.layers import full_precision
from querypose.modeling.loss_terms import LossTerm
from querypose.modeling.poet.criterion import QueryOutputs
from querypose.modeling.poet.loss_terms import POET_LOSS_REGISTRY
from querypose.modeling.pose_similarity import keypoint_similarities, mean_over_labeled
from querypose.modeling.targets import Matches, PersonTargets
from querypose.skeleton import Skeleton

add_keys((Key("MODEL.POET.LOSS.SIMILARITY.OKS_WEIGHT", 2.0, "weight of 1 - OKS in loss_similarity", at_least(0)),))


@POET_LOSS_REGISTRY.register(name="similarity")
class SimilarityLoss(LossTerm):
    """1 - OKS of the matched queries of all layers; hidden keypoints count too, as in the metric.

    Args:
        skeleton: gives the sigmas of the OKS.
        oks_weight: of the loss.
    """

    sigmas_K: Tensor

    def __init__(self, skeleton: Skeleton, oks_weight: float) -> None:
        super().__init__()
        self.register_buffer("sigmas_K", torch.tensor(skeleton.sigmas), persistent=False)
        self.oks_weight = oks_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The argument that YAML states."""
        return {"oks_weight": cfg.MODEL.POET.LOSS.SIMILARITY.OKS_WEIGHT}

    def forward(
        self,
        *,
        outputs: QueryOutputs,
        matches_S: Sequence[Matches],
        persons: PersonTargets,
        normalizers: Mapping[str, Tensor],
        **_: Any,
    ) -> Tensor:
        """A sum over layers and persons, divided by the persons."""
        with full_precision(persons.boxes_BG4):
            loss = sum(
                self._sum(outputs.poses_SBQ[layer].keypoints_KD, matches, persons)
                for layer, matches in enumerate(matches_S)
            )
            return self.oks_weight * loss / normalizers["persons"].clamp(min=1).to(persons.boxes_BG4)

    def _sum(self, keypoints_BQKD: Tensor, matches: Matches, persons: PersonTargets) -> Tensor:
        image_R, person_R = matches.image_R, matches.person_R
        size_R1D = persons.image_size_B4[image_R, None, :2]
        keypoints_RKD = keypoints_BQKD[image_R, matches.query_R] * size_R1D
        labeled_RK = persons.labelled_BGK[image_R, person_R]
        target_RKD = torch.where(
            labeled_RK[..., None], persons.keypoints_BGKD[image_R, person_R], keypoints_RKD.detach()
        )
        similarity_RK = keypoint_similarities(
            keypoints_RKD, target_RKD, persons.boxes_BG4[image_R, person_R], self.sigmas_K
        )
        return mean_over_labeled(1 - similarity_RK, labeled_RK).sum()
