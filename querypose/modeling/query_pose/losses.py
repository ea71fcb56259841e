"""Loss terms as sums, which the criterion divides.

All accept a leading dimension of stages, over which they do not sum, so that one call of each serves all stages.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from querypose.layers import RealNVP, generalized_box_iou

# With this bound a residual as large as the box is at most 1e6 after division by sigma; its density is finite under
# any trained flow. Sigmas of trained models are a thousand times larger.
SMALLEST_SIGMA = 1e-6


def focal_loss(logits_BQ: Tensor, is_person_BQ: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss, summed over all queries.

    Args:
        logits_BQ: class logit of every query.
        is_person_BQ: 1 where the query is matched with a person, else 0; same type.
        alpha: weight of the persons; the background has 1 - alpha.
        gamma: exponent that reduces the weight of easy queries.
    """
    return sigmoid_focal_loss(logits_BQ, is_person_BQ, alpha=alpha, gamma=gamma).sum((-2, -1))


def box_l1_loss(boxes_R4: Tensor, person_boxes_R4: Tensor, image_size_R4: Tensor) -> Tensor:
    """L1 distance of corners in units of the unpadded image's width and height, summed."""
    return ((boxes_R4 - person_boxes_R4) / image_size_R4).abs().sum((-2, -1))


def box_giou_loss(boxes_R4: Tensor, person_boxes_R4: Tensor) -> Tensor:
    """One minus the generalized IoU, summed."""
    return (1 - generalized_box_iou(boxes_R4, person_boxes_R4)).sum(-1)


def residual_log_likelihood_loss(
    mean_RKD: Tensor, sigma_RKD: Tensor, target_RKD: Tensor, valid_RK: Tensor, flow: RealNVP
) -> Tensor:
    """Negative log-likelihood of keypoints under the flow-deformed density, summed (QueryPose eq. 4).

    As in the code of residual log-likelihood estimation, the flow's log-density of a keypoint counts once per
    coordinate, and the explicit density beside it is a Laplace density of scale sqrt(2)·sigma with the constant of a
    Gaussian one.

    Args:
        mean_RKD: predicted keypoints in the frame of the predicted box, nominally in [-0.5, 0.5].
        sigma_RKD: predicted scale in (0, 1), same frame.
        target_RKD: annotated keypoints, same frame.
        valid_RK: True where the keypoint is labeled and inside the predicted box.
        flow: the density of the standardized residual.
    """
    # Targets that do not count may be infinite, and zero times infinity would be NaN.
    target_RKD = torch.where(valid_RK[..., None], target_RKD, mean_RKD.detach())
    return (residual_log_likelihood(mean_RKD, sigma_RKD, target_RKD, flow) * valid_RK[..., None]).sum((-3, -2, -1))


def residual_log_likelihood(mean_RKD: Tensor, sigma_RKD: Tensor, target_RKD: Tensor, flow: RealNVP) -> Tensor:
    """The elements (R, K, D) of `residual_log_likelihood_loss`, all of them valid."""
    # At least SMALLEST_SIGMA, but with its own gradient, so that a sigma below the bound can grow again.
    sigma_RKD = sigma_RKD + (sigma_RKD.clamp(min=SMALLEST_SIGMA) - sigma_RKD).detach()
    residual_RKD = (mean_RKD - target_RKD) / sigma_RKD
    log_density_RK = flow.log_prob(residual_RKD.flatten(0, -2)).view(residual_RKD.shape[:-1])
    log_sigma_RKD = sigma_RKD.log()
    flow_term_RKD = log_sigma_RKD - log_density_RK[..., None]
    laplace_term_RKD = (
        log_sigma_RKD + 0.5 * math.log(2 * math.pi) + (target_RKD - mean_RKD).abs() / (math.sqrt(2) * sigma_RKD + 1e-9)
    )
    return flow_term_RKD + laplace_term_RKD
