"""Auxiliary keypoint heat maps: a dense task beside a decoder of queries (QueryPose, end of Sec. 4.3).

The map of a keypoint has a Gaussian bump at that keypoint of every person. Their loss trains the backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from querypose.layers import at_least_float32, full_precision
from querypose.modeling.loss_terms import LossTerm
from querypose.modeling.targets import PersonTargets

# A box that shrinks by the radius of a bump on all sides keeps this share of its area (CornerNet).
MIN_OVERLAP = 0.7
PRIOR_PROB = 0.1


class AuxiliaryHeatmap(LossTerm):
    """Two convolutions that predict the heat maps, and their loss.

    Args:
        in_feature: the level of the pyramid that they read.
        dim: channels C of the features.
        num_keypoints: K.
        stride: of the features, in pixels a cell.
        weight: of the loss.
        hidden_dim: channels between the convolutions; by default `dim`.
    """

    def __init__(
        self,
        *,
        in_feature: str,
        dim: int,
        num_keypoints: int,
        stride: int,
        weight: float,
        hidden_dim: int | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or dim
        self.convs = nn.Sequential(nn.Conv2d(dim, hidden_dim, 3, padding=1), nn.ReLU(inplace=True))
        self.logits = nn.Conv2d(hidden_dim, num_keypoints, 1)
        nn.init.constant_(self.logits.bias, math.log(PRIOR_PROB / (1 - PRIOR_PROB)))  # type: ignore[arg-type]  # it has a bias
        self.in_feature = in_feature
        self.stride = stride
        self.weight = weight

    def forward(
        self, features: Mapping[str, Tensor], targets: PersonTargets, normalizers: Mapping[str, Tensor], **_: Any
    ) -> Tensor:
        """The weighted loss, a scalar.

        Deviates: it is divided by persons and keypoints, as loss_keypoint is, and ignores the padding; the authors'
        code divides by the labeled keypoints and includes the padding.
        """
        feature_BCHW = features[self.in_feature]
        logits_BKHW = self._logits(features)
        num_keypoints, height, width = logits_BKHW.shape[1:]
        with full_precision(feature_BCHW):
            target_BKHW = draw_heatmaps(targets, height, width, self.stride)
            inside_B1HW = inside_images(targets.image_size_B4, height, width, self.stride)
            loss = heatmap_focal_loss(at_least_float32(logits_BKHW), target_BKHW, inside_B1HW)
            # Without the conversion the float64 of the normalizer would make the loss float64 too.
            return self.weight * loss / (normalizers["persons"].clamp(min=1) * num_keypoints).to(loss)

    def _logits(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.logits(self.convs(features[self.in_feature]))


def draw_heatmaps(targets: PersonTargets, height: int, width: int, stride: int) -> Tensor:
    """The target heat maps: in every cell the highest of the persons' Gaussians, 1 in a keypoint's own cell.

    A Gaussian ends at a radius that depends on the person's box, and its sigma is a sixth of its diameter. Deviates:
    box and radius are in cells of the map; the authors' code takes the box in pixels, so that bumps are `stride` times
    as wide.

    Args:
        targets: the persons; keypoints that are not labeled are not drawn.
        height: of the map, in cells.
        width: of the map, in cells.
        stride: pixels a cell.

    Returns:
        (B, K, height, width) in [0, 1].
    """
    radius_BG11 = bump_radius((targets.boxes_BG4[..., 2:] - targets.boxes_BG4[..., :2]) / stride)[..., None, None]
    cell_BGKD = (targets.keypoints_BGKD / stride).floor()
    columns_BGKW = _cut_off_bump(cell_BGKD[..., 0, None], radius_BG11, width)
    rows_BGKH = _cut_off_bump(cell_BGKD[..., 1, None], radius_BG11, height) * targets.labelled_BGK[..., None]
    num_images, num_persons, num_keypoints = targets.labelled_BGK.shape
    heatmap_BKHW = columns_BGKW.new_zeros(num_images, num_keypoints, height, width)
    for person in range(num_persons):  # all at once would need `num_persons` times the memory
        bumps_BKHW = rows_BGKH[:, person, :, :, None] * columns_BGKW[:, person, :, None, :]
        heatmap_BKHW = torch.maximum(heatmap_BKHW, bumps_BKHW)
    return heatmap_BKHW


def bump_radius(size: Tensor) -> Tensor:
    """Whole cells (…) by which a box of `size` (…, 2) cells can shrink on all sides and keep MIN_OVERLAP of its area.

    Of CornerNet's three cases (shrunk, grown, shifted) this is the strictest for every shape.
    """
    perimeter, area = 2 * size.sum(-1), size.prod(-1)
    return ((perimeter - (perimeter.square() - 16 * (1 - MIN_OVERLAP) * area).sqrt()) / 8).floor()


def _cut_off_bump(center: Tensor, radius: Tensor, length: int) -> Tensor:
    """`gaussian_bump` of a sixth of the diameter, 0 beyond the radius (…, 1)."""
    distance = torch.arange(length, device=center.device, dtype=center.dtype) - center
    return gaussian_bump(center, (2 * radius + 1) / 6, length) * (distance.abs() <= radius)


def gaussian_bump(center: Tensor, sigma: Tensor, length: int) -> Tensor:
    """A Gaussian (…, length) along one axis around the cell `center` (…, 1), 1 there, in cells."""
    distance = torch.arange(length, device=center.device, dtype=center.dtype) - center
    return torch.exp(-distance.square() / (2 * sigma.square()))


def inside_images(size_B4: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Which cells (B, 1, height, width) cover image and not padding alone; sizes as width, height, width, height."""
    inside_BW = torch.arange(width, device=size_B4.device) * stride < size_B4[:, 0, None]
    inside_BH = torch.arange(height, device=size_B4.device) * stride < size_B4[:, 1, None]
    return inside_BH[:, None, :, None] & inside_BW[:, None, None, :]


def heatmap_focal_loss(
    logits_BKHW: Tensor, target_BKHW: Tensor, counts_B1HW: Tensor, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Focal loss of heat maps with soft bumps, summed (CornerNet): false scores near a keypoint cost less.

    Args:
        logits_BKHW: of every cell.
        target_BKHW: 1 in the cell of a keypoint, falling to 0 around it.
        counts_B1HW: True in the cells that count.
        alpha: exponent that reduces the weight of easy cells.
        beta: exponent that reduces the weight of cells near a keypoint.
    """
    score_BKHW = logits_BKHW.sigmoid()
    hit_BKHW = (1 - score_BKHW) ** alpha * F.logsigmoid(logits_BKHW)
    false_alarm_BKHW = (1 - target_BKHW) ** beta * score_BKHW**alpha * F.logsigmoid(-logits_BKHW)
    return -(torch.where(target_BKHW == 1, hit_BKHW, false_alarm_BKHW) * counts_B1HW).sum()
