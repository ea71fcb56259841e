"""The set criterion: the losses of each stage's predictions for the matched persons (Sec. 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from querypose.layers import RealNVP, at_least_float32, full_precision
from querypose.modeling.deep_supervision import name_stage_losses
from querypose.modeling.query_pose.losses import (
    box_giou_loss,
    box_l1_loss,
    focal_loss,
    residual_log_likelihood_loss,
)
from querypose.modeling.query_pose.pose_decoder import RegionPoses, StagePrediction
from querypose.modeling.targets import PersonTargets


class SetCriterion(nn.Module):
    """Weighted losses of every stage (deep supervision), or of the last stage only.

    All terms are divided by the number of persons, at least 1; the keypoint term by the number of keypoints of the
    skeleton as well.

    Args:
        flow: the density of the standardized keypoint residual; shared by all keypoints and stages. None for no
            keypoint loss, where further terms take its place.
        cls_weight: of the focal loss.
        bbox_weight: of the L1 loss.
        giou_weight: of the generalized IoU loss.
        keypoint_weight: of the residual log-likelihood loss.
        focal_alpha: of the focal loss.
        focal_gamma: of the focal loss.
        deep_supervision: whether earlier stages have losses too.
    """

    def __init__(
        self,
        *,
        flow: RealNVP | None,
        cls_weight: float = 2.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        keypoint_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.weights = {
            "loss_cls": cls_weight,
            "loss_bbox": bbox_weight,
            "loss_giou": giou_weight,
            "loss_keypoint": keypoint_weight,
        }
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.deep_supervision = deep_supervision

    def forward(
        self, stages: Sequence[StagePrediction], targets: PersonTargets, normalizers: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weighted losses.

        Args:
            stages: predictions of the S stages in order.
            targets: the persons.
            normalizers: `persons`.

        Returns:
            `loss_cls`, `loss_bbox`, `loss_giou`, `loss_keypoint` of the last stage, and with suffix `_{stage}` those
            of the earlier ones, scalars; of keypoints where a stage has some and there is a flow.
        """
        supervised = stages if self.deep_supervision else stages[-1:]
        num_persons = normalizers["persons"].clamp(min=1)
        with full_precision(targets.boxes_BG4):
            losses = name_stage_losses(self.unweighted_losses(supervised, targets, num_persons), self.weights)
        if not self.deep_supervision:
            # Plus zero times the other outputs: DistributedDataParallel waits for a gradient of every parameter.
            unsupervised = [
                output
                for stage in stages[:-1]
                for output in (stage.logits_BQ, stage.boxes_BQ4, stage.mean_RKD, stage.sigma_RKD)
            ]
            losses["loss_cls"] = losses["loss_cls"] + 0.0 * sum(output.sum() for output in unsupervised)
        return losses

    def unweighted_losses(
        self, stages: Sequence[StagePrediction], targets: PersonTargets, num_persons: Tensor
    ) -> dict[str, Tensor]:
        """The losses (S) of the stages, computed together: all stages have the same number of pairs."""
        logits_SBQ = torch.stack([at_least_float32(stage.logits_BQ) for stage in stages])
        boxes_SBQ4 = torch.stack([at_least_float32(stage.boxes_BQ4) for stage in stages])
        image_SR, query_SR, person_SR = (
            torch.stack([getattr(stage.matches, name) for stage in stages])
            for name in ("image_R", "query_R", "person_R")
        )
        stage_S1 = torch.arange(len(stages), device=image_SR.device)[:, None]
        is_person_SBQ = torch.zeros_like(logits_SBQ)
        is_person_SBQ[stage_S1, image_SR, query_SR] = 1.0

        boxes_SR4 = boxes_SBQ4[stage_S1, image_SR, query_SR]
        person_boxes_SR4 = targets.boxes_BG4[image_SR, person_SR]
        image_size_SR4 = targets.image_size_B4[image_SR]
        losses = {
            "loss_cls": focal_loss(logits_SBQ, is_person_SBQ, self.focal_alpha, self.focal_gamma) / num_persons,
            "loss_bbox": box_l1_loss(boxes_SR4, person_boxes_SR4, image_size_SR4) / num_persons,
            "loss_giou": box_giou_loss(boxes_SR4, person_boxes_SR4) / num_persons,
        }
        if self.flow is not None:
            poses_S = [
                RegionPoses(*map(torch.cat, zip(*stage.poses, strict=True))) for stage in stages if stage.has_poses
            ]
            image_SR, person_SR, boxes_SR4, *means_and_sigmas = map(torch.stack, zip(*poses_S, strict=True))
            mean_SRKD, sigma_SRKD = map(at_least_float32, means_and_sigmas)
            target_SRKD, valid_SRK = keypoint_targets(boxes_SR4, image_SR, person_SR, targets)
            keypoint_S = residual_log_likelihood_loss(mean_SRKD, sigma_SRKD, target_SRKD, valid_SRK, self.flow)
            losses["loss_keypoint"] = keypoint_S / (num_persons * target_SRKD.shape[-2])
        return losses


def keypoint_targets(
    boxes_R4: Tensor, image_R: Tensor, person_R: Tensor, targets: PersonTargets
) -> tuple[Tensor, Tensor]:
    """Annotated keypoints of the matched persons in the frame of the predicted boxes; leading dimensions stay.

    Args:
        boxes_R4: predicted corners of the R pairs, in pixels.
        image_R: index of the image of each pair.
        person_R: index of the person within its image.
        targets: the persons.

    Returns:
        the targets (R, K, D), box center at 0 and corners at ±0.5; and (R, K), True where a keypoint is labeled and
        inside the predicted box: the others are "masked" (Sec. 3.4).
    """
    keypoints_RKD = targets.keypoints_BGKD[image_R, person_R]
    labeled_RK = targets.labelled_BGK[image_R, person_R]
    corner_R1D, size_R1D = boxes_R4[..., None, :2], (boxes_R4[..., None, 2:] - boxes_R4[..., None, :2])
    offset_RKD = keypoints_RKD - corner_R1D
    inside_RK = ((offset_RKD >= 0) & (offset_RKD <= size_R1D)).all(-1)
    return offset_RKD / size_R1D.clamp(min=1e-6) - 0.5, labeled_RK & inside_RK
