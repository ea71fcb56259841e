"""The set criterion: what each stage's predictions for the matched persons cost (Sec. 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from querypose.d2 import comm
from querypose.layers import RealNVP, at_least_float32, full_precision
from querypose.modeling.losses import box_giou_loss, box_l1_loss, focal_loss, residual_log_likelihood_loss
from querypose.modeling.pose_decoder import StagePrediction
from querypose.modeling.targets import Matches, PersonTargets


class SetCriterion(nn.Module):
    """Weighted losses of every stage (deep supervision), or of the last one alone.

    All terms are divided by the number of persons in the batch, averaged over the processes and at least 1; the
    keypoint term by the number of keypoints of the skeleton as well.

    Args:
        flow: the density of the standardised keypoint residual; shared by all keypoints and stages.
        cls_weight: of the focal loss.
        bbox_weight: of the L1 loss.
        giou_weight: of the generalised IoU loss.
        keypoint_weight: of the residual log-likelihood loss.
        focal_alpha: of the focal loss.
        focal_gamma: of the focal loss.
        deep_supervision: whether earlier stages have losses too.
    """

    def __init__(
        self,
        *,
        flow: RealNVP,
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

    def forward(self, stages: Sequence[StagePrediction], targets: PersonTargets) -> dict[str, Tensor]:
        """The weighted losses.

        Args:
            stages: predictions of the S stages in order.
            targets: the persons.

        Returns:
            `loss_cls`, `loss_bbox`, `loss_giou`, `loss_keypoint` of the last stage, and with suffix `_{stage}` those
            of the earlier ones, scalars.
        """
        losses = {}
        num_persons = mean_persons_per_process(targets)
        with full_precision(targets.boxes_BG4):
            for index, stage in enumerate(stages):
                is_last = index == len(stages) - 1
                if is_last or self.deep_supervision:
                    suffix = "" if is_last else f"_{index}"
                    for name, loss in self.stage_losses(stage, targets, num_persons).items():
                        losses[name + suffix] = self.weights[name] * loss
        return losses

    def stage_losses(self, stage: StagePrediction, targets: PersonTargets, num_persons: Tensor) -> dict[str, Tensor]:
        """The four unweighted losses of one stage."""
        matches = stage.matches
        logits_BQ, boxes_BQ4 = at_least_float32(stage.logits_BQ), at_least_float32(stage.boxes_BQ4)
        is_person_BQ = torch.zeros_like(logits_BQ)
        is_person_BQ[matches.image_R, matches.query_R] = 1.0

        boxes_R4 = boxes_BQ4[matches.image_R, matches.query_R]
        person_boxes_R4 = targets.boxes_BG4[matches.image_R, matches.person_R]
        target_RKD, valid_RK = keypoint_targets(boxes_R4.detach(), matches, targets)
        num_keypoints = target_RKD.shape[1]
        return {
            "loss_cls": focal_loss(logits_BQ, is_person_BQ, self.focal_alpha, self.focal_gamma) / num_persons,
            "loss_bbox": box_l1_loss(boxes_R4, person_boxes_R4, targets.image_size_B4[matches.image_R]) / num_persons,
            "loss_giou": box_giou_loss(boxes_R4, person_boxes_R4) / num_persons,
            "loss_keypoint": residual_log_likelihood_loss(
                at_least_float32(stage.mean_RKD), at_least_float32(stage.sigma_RKD), target_RKD, valid_RK, self.flow
            )
            / (num_persons * num_keypoints),
        }


def keypoint_targets(boxes_R4: Tensor, matches: Matches, targets: PersonTargets) -> tuple[Tensor, Tensor]:
    """Annotated keypoints of the matched persons in the frame of the predicted boxes.

    Returns:
        the targets (R, K, D), box centre at 0 and corners at ±0.5; and (R, K), True where a keypoint is labelled and
        not outside the predicted box ("masked", Sec. 3.4).
    """
    keypoints_RKD = targets.keypoints_BGKD[matches.image_R, matches.person_R]
    labelled_RK = targets.labelled_BGK[matches.image_R, matches.person_R]
    corner_R1D, size_R1D = boxes_R4[:, None, :2], (boxes_R4[:, None, 2:] - boxes_R4[:, None, :2])
    offset_RKD = keypoints_RKD - corner_R1D
    inside_RK = ((offset_RKD >= 0) & (offset_RKD <= size_R1D)).all(-1)
    return offset_RKD / size_R1D.clamp(min=1e-6) - 0.5, labelled_RK & inside_RK


def mean_persons_per_process(targets: PersonTargets) -> Tensor:
    """Persons of the batch averaged over the processes, at least 1: the normaliser of every loss."""
    num_persons = targets.boxes_BG4.new_tensor(float(targets.num_persons))
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(num_persons)
        num_persons = num_persons / comm.get_world_size()
    return num_persons.clamp(min=1)
