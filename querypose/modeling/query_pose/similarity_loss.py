"""A keypoint loss for short trainings: distance and OKS, with a quality in place of a likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from querypose.config import Key, add_keys, at_least
from querypose.d2 import CfgNode
from querypose.layers import at_least_float32, full_precision
from querypose.modeling.loss_terms import LossTerm
from querypose.modeling.pose_similarity import keypoint_similarities, mean_over_labeled
from querypose.modeling.query_pose.loss_terms import QUERY_POSE_LOSS_REGISTRY
from querypose.modeling.query_pose.pose_decoder import RegionPoses, StagePrediction
from querypose.modeling.query_pose.query_selection import keypoint_scores
from querypose.modeling.targets import PersonTargets
from querypose.skeleton import Skeleton

# fmt: off
add_keys((
    Key("MODEL.QUERYPOSE.LOSS.SIMILARITY.L1_WEIGHT", 5.0, "weight of the distance in loss_similarity", at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.SIMILARITY.OKS_WEIGHT", 2.0, "weight of 1 - OKS in loss_similarity", at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.SIMILARITY.QUALITY_WEIGHT", 1.0,
        "weight in loss_similarity of the score of a keypoint, which learns the similarity that the keypoint reaches",
        at_least(0)),
))
# fmt: on


@QUERY_POSE_LOSS_REGISTRY.register(name="similarity")
class SimilarityLoss(LossTerm):
    """L1 distance, 1 - OKS, and the quality of every keypoint, for all poses of all stages.

    The residual log-likelihood of the paper starts from a random density: until that is learned, its gradient is mostly
    noise, and loud. Distance and OKS are right from the first iteration. All labeled keypoints count, also those
    outside the predicted box, which early boxes often cut off. The score of a keypoint, 1 - sigma, learns the
    similarity that the keypoint reaches, so that poses are ranked by what AP measures.

    Args:
        skeleton: gives the sigmas of the OKS.
        l1_weight: of the distance, in units of the person's size (the root of its box's area), mean over keypoints.
        oks_weight: of 1 - OKS.
        quality_weight: of the cross entropy between score and similarity, mean over keypoints.
    """

    sigmas_K: Tensor

    def __init__(self, skeleton: Skeleton, l1_weight: float, oks_weight: float, quality_weight: float) -> None:
        super().__init__()
        self.register_buffer("sigmas_K", torch.tensor(skeleton.sigmas), persistent=False)
        self.l1_weight = l1_weight
        self.oks_weight = oks_weight
        self.quality_weight = quality_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that YAML states."""
        keys = cfg.MODEL.QUERYPOSE.LOSS.SIMILARITY
        return {"l1_weight": keys.L1_WEIGHT, "oks_weight": keys.OKS_WEIGHT, "quality_weight": keys.QUALITY_WEIGHT}

    def forward(
        self, *, stages: Sequence[StagePrediction], targets: PersonTargets, normalizers: Mapping[str, Tensor], **_: Any
    ) -> Tensor:
        """The weighted sum over stages and poses, divided by the persons."""
        with full_precision(targets.boxes_BG4):
            losses = [self._sum(poses, targets) for stage in stages for poses in stage.poses]
            return torch.stack(losses).sum() / normalizers["persons"].clamp(min=1).to(losses[0])

    def _sum(self, poses: RegionPoses, targets: PersonTargets) -> Tensor:
        person_boxes_R4 = targets.boxes_BG4[poses.image_R, poses.person_R]
        labeled_RK = targets.labelled_BGK[poses.image_R, poses.person_R]
        mean_RKD, sigma_RKD = at_least_float32(poses.mean_RKD), at_least_float32(poses.sigma_RKD)
        corner_R1D, size_R1D = poses.boxes_R4[:, None, :2], poses.boxes_R4[:, None, 2:] - poses.boxes_R4[:, None, :2]
        keypoints_RKD = corner_R1D + (mean_RKD + 0.5) * size_R1D
        # The place of an unlabeled keypoint may be infinite, and zero times infinity would be NaN.
        target_RKD = torch.where(
            labeled_RK[..., None], targets.keypoints_BGKD[poses.image_R, poses.person_R], keypoints_RKD.detach()
        )
        extent_R11 = (person_boxes_R4[:, 2:] - person_boxes_R4[:, :2]).prod(-1).clamp(min=1).sqrt()[:, None, None]
        distance_RK = ((keypoints_RKD - target_RKD) / extent_R11).abs().sum(-1)
        similarity_RK = keypoint_similarities(keypoints_RKD, target_RKD, person_boxes_R4, self.sigmas_K)
        quality_RK = F.binary_cross_entropy(keypoint_scores(sigma_RKD), similarity_RK.detach(), reduction="none")
        loss_RK = (
            self.l1_weight * distance_RK + self.oks_weight * (1 - similarity_RK) + self.quality_weight * quality_RK
        )
        return mean_over_labeled(loss_RK, labeled_RK).sum()
