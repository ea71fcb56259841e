"""Where queries start on pictures that they have not seen: at the peaks of a dense map of box centers.

The paper's queries start from learned boxes, the same for every image, and learn over many epochs which of them answers
for whom. Here a small head predicts at every cell whether a person's box has its center there, and that box. The best
local maxima become the queries, so that matching is right from the first minutes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from querypose.layers import at_least_float32, box_cxcywh_to_xyxy, full_precision, generalized_box_iou
from querypose.layers.boxes import MAX_LOG_SCALE
from querypose.modeling.keypoint_heatmaps import gaussian_bump, heatmap_focal_loss, inside_images
from querypose.modeling.query_pose.initialization import prior_bias
from querypose.modeling.targets import PersonTargets

PRIOR_PROB = 0.02
CENTER_UNIT, SIZE_UNIT = 4.0, 6.0
"""In strides: what one unit of the head's output moves a center by, and the size of a box whose logarithm is 0."""
CENTER_SIGMA, MIN_SIGMA = 0.12, 0.8
"""Sigma of the Gaussian at a center: share of the box's side, and the least in cells."""
POSITIVE_RADIUS = 1.5
"""In strides: cells this near to a center, and within a quarter of the box, learn the box."""
NO_PEAK = 10.0
"""Logit by which a cell beside a higher one falls behind all peaks."""
OUTSIDE = -1e4


class StartingQueries(NamedTuple):
    """Where the decoder begins.

    Attributes:
        boxes_BQ4: corners in pixels, without gradient.
        query_BQC: instance queries.
        prior_BQ: added to the class logit of every stage; None adds nothing.
        cells: the dense maps behind them, for the loss: logits (B, 1, H, W) and boxes (B, H, W, 4).
    """

    boxes_BQ4: Tensor
    query_BQC: Tensor
    prior_BQ: Tensor | None = None
    cells: tuple[Tensor, Tensor] | None = None


class DenseStart(nn.Module):
    """Predicts centers and boxes at every cell of a level, and starts queries at the highest peaks.

    Args:
        in_feature: the level of the pyramid.
        stride: of the level, in pixels.
        dim: channels C of level and queries.
        num_queries: Q.
        weights: of `loss_start_cls`, `loss_start_bbox` and `loss_start_giou`.
    """

    def __init__(
        self, *, in_feature: str, stride: int, dim: int, num_queries: int, weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.stride = stride
        self.num_queries = num_queries
        self.weights = dict(weights)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.logits = nn.Conv2d(dim, 1, 1)
        self.boxes = nn.Conv2d(dim, 4, 1)
        self.project = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        for head in (self.logits, self.boxes):
            nn.init.normal_(head.weight, std=0.01)
        nn.init.constant_(self.logits.bias, prior_bias(PRIOR_PROB))  # type: ignore[arg-type]  # it has a bias
        nn.init.zeros_(self.boxes.bias)  # type: ignore[arg-type]

    def forward(self, features: Mapping[str, Tensor], image_size_B4: Tensor) -> StartingQueries:
        """The Q queries of every image, best peak first.

        Args:
            features: (B, C, H, W) a level.
            image_size_B4: width, height, width, height of each unpadded image, in pixels.
        """
        feature_BCHW = self.conv(features[self.in_feature]).relu()
        with full_precision(feature_BCHW):
            feature_BCHW = at_least_float32(feature_BCHW)
            logits_B1HW = self.logits(feature_BCHW)
            boxes_BHW4 = self._decode(self.boxes(feature_BCHW).permute(0, 2, 3, 1))
            height, width = logits_B1HW.shape[-2:]
            inside_B1HW = inside_images(image_size_B4, height, width, self.stride)
            cell_BQ = self._peaks(logits_B1HW.detach(), inside_B1HW)
            prior_BQ = logits_B1HW.flatten(1).gather(1, cell_BQ) - NO_PEAK * self._is_beside_a_peak(
                logits_B1HW.detach(), inside_B1HW
            ).flatten(1).gather(1, cell_BQ)
        image_B1 = torch.arange(cell_BQ.shape[0], device=cell_BQ.device)[:, None]
        feature_BQC = feature_BCHW.flatten(2).transpose(1, 2)[image_B1, cell_BQ]
        return StartingQueries(
            boxes_BHW4.detach().flatten(1, 2)[image_B1, cell_BQ],
            self.norm(self.project(feature_BQC)),
            prior_BQ,
            (logits_B1HW, boxes_BHW4),
        )

    def losses(
        self, start: StartingQueries, targets: PersonTargets, normalizers: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weighted losses of the dense maps, scalars, divided by the persons: of centers, and of boxes.

        A center is taught by a Gaussian (CornerNet's focal loss); a box by all cells near a center, each person alike.
        """
        assert start.cells is not None
        logits_B1HW, boxes_BHW4 = start.cells
        height, width = logits_B1HW.shape[-2:]
        num_persons = normalizers["persons"].clamp(min=1).to(logits_B1HW)
        with full_precision(logits_B1HW):
            target_B1HW, box_BHW4, weight_BHW = dense_targets(targets, height, width, self.stride)
            inside_B1HW = inside_images(targets.image_size_B4, height, width, self.stride)
            losses = {"loss_start_cls": heatmap_focal_loss(logits_B1HW, target_B1HW, inside_B1HW)}
            # At all cells, most of them with weight 0, so that the host does not wait for their number.
            distance_BHW = ((boxes_BHW4 - box_BHW4) / targets.image_size_B4[:, None, None]).abs().sum(-1)
            losses["loss_start_bbox"] = (weight_BHW * distance_BHW).sum()
            losses["loss_start_giou"] = (weight_BHW * (1 - generalized_box_iou(boxes_BHW4, box_BHW4))).sum()
            return {name: self.weights[name] * loss / num_persons for name, loss in losses.items()}

    def _decode(self, output_BHW4: Tensor) -> Tensor:
        """Corners (B, H, W, 4) in pixels."""
        height, width = output_BHW4.shape[1:3]
        row_H, column_W = (torch.arange(size).to(output_BHW4) for size in (height, width))
        center_HWD = torch.stack(torch.meshgrid(column_W, row_H, indexing="xy"), dim=-1) + 0.5
        center_BHWD = (center_HWD + CENTER_UNIT * output_BHW4[..., :2]) * self.stride
        size_BHWD = SIZE_UNIT * self.stride * output_BHW4[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
        return box_cxcywh_to_xyxy(torch.cat([center_BHWD, size_BHWD], dim=-1))

    def _is_beside_a_peak(self, logits_B1HW: Tensor, inside_B1HW: Tensor) -> Tensor:
        masked_B1HW = torch.where(inside_B1HW, logits_B1HW, OUTSIDE)
        return masked_B1HW < F.max_pool2d(masked_B1HW, 3, stride=1, padding=1)

    def _peaks(self, logits_B1HW: Tensor, inside_B1HW: Tensor) -> Tensor:
        """Cells (B, Q) of each image, highest peak first, then the other cells; again from the first if too few."""
        rank_B1HW = logits_B1HW - NO_PEAK * self._is_beside_a_peak(logits_B1HW, inside_B1HW)
        rank_BT = torch.where(inside_B1HW, rank_B1HW, 2 * OUTSIDE).flatten(1)
        ranked_BT = rank_BT.argsort(dim=1, descending=True, stable=True)
        place_Q = torch.arange(self.num_queries, device=ranked_BT.device)
        return ranked_BT.gather(1, place_Q % inside_B1HW.flatten(1).sum(1, keepdim=True))


def dense_targets(targets: PersonTargets, height: int, width: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the cells of a map learn.

    Args:
        targets: the persons.
        height: of the map, in cells.
        width: of the map, in cells.
        stride: pixels a cell.

    Returns:
        centers (B, 1, H, W), 1 in the cell of a box's center and falling around it; the box (B, H, W, 4) that a cell
        learns; and with which weight (B, H, W), 0 where it learns none. The weights of a person's cells add up to 1,
        unless a nearer person takes some.
    """
    num_images, num_persons = targets.boxes_BG4.shape[:2]
    if num_persons == 0:
        nothing_BHW4 = targets.boxes_BG4.new_zeros(num_images, height, width, 4)
        return nothing_BHW4[:, None, ..., 0], nothing_BHW4, nothing_BHW4[..., 0]
    boxes_BG4 = targets.boxes_BG4 / stride
    size_BGD = boxes_BG4[..., 2:] - boxes_BG4[..., :2]
    center_BGD = (boxes_BG4[..., :2] + boxes_BG4[..., 2:]) / 2
    count_B = torch.tensor(targets.counts).to(boxes_BG4.device, non_blocking=True)
    exists_BG11 = (torch.arange(num_persons, device=count_B.device) < count_B[:, None])[..., None, None]
    last_D = center_BGD.new_tensor([width - 1, height - 1])
    own_BGD = center_BGD.floor().clamp(min=torch.zeros_like(last_D), max=last_D)
    sigma_BGD = (CENTER_SIGMA * size_BGD).clamp(min=MIN_SIGMA)
    bump_BGHW = (
        gaussian_bump(own_BGD[..., 1, None], sigma_BGD[..., 1, None], height)[..., :, None]
        * gaussian_bump(own_BGD[..., 0, None], sigma_BGD[..., 0, None], width)[..., None, :]
    ) * exists_BG11
    row_H, column_W = (torch.arange(size, device=count_B.device) + 0.5 for size in (height, width))
    distance_BGHW2 = torch.stack(
        [
            (column_W - center_BGD[..., 0, None, None]).abs().expand(*bump_BGHW.shape),
            (row_H[:, None] - center_BGD[..., 1, None, None]).abs().expand(*bump_BGHW.shape),
        ],
        dim=-1,
    )
    reach_BG112 = (size_BGD / 4).clamp(max=POSITIVE_RADIUS)[:, :, None, None]
    learns_BGHW = ((distance_BGHW2 <= reach_BG112).all(-1) | (bump_BGHW == 1)) & exists_BG11
    weight_BGHW = learns_BGHW / learns_BGHW.sum((-2, -1), keepdim=True).clamp(min=1)
    # A cell near several centers learns the box of the nearest one.
    person_BHW = torch.where(learns_BGHW, distance_BGHW2.sum(-1), torch.inf).argmin(1)
    image_B11 = torch.arange(num_images, device=person_BHW.device)[:, None, None]
    weight_BHW = weight_BGHW.gather(1, person_BHW[:, None])[:, 0]
    return bump_BGHW.amax(1)[:, None], targets.boxes_BG4[image_B11, person_BHW], weight_BHW
