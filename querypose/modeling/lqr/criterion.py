"""The losses: scores fitted to the OKS that the poses reach now (CIR, eq. 1 to 3), displacements (eq. 5), their sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querypose.modeling.lqr.pose_queries import PoseScores
from querypose.modeling.lqr.regions import Regions, gaussian_labels
from querypose.skeleton import Skeleton

Label = Literal["cir", "gaussian", "discrete"]
LABELS: tuple[Label, ...] = ("cir", "gaussian", "discrete")


class LQRCriterion(nn.Module):
    """Losses of maps against regions.

    Args:
        skeleton: gives the sigmas of the OKS.
        label: what a score is fitted to: the OKS of the pose that its cell predicts (CIR), or as Table 3 has it.
        background_weight: of the scores of cells outside of all regions.
        weights: of each loss, by its name.
    """

    sigma_K: Tensor

    def __init__(
        self, *, skeleton: Skeleton, label: Label, background_weight: float, weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.register_buffer("sigma_K", torch.tensor(skeleton.sigmas), persistent=False)
        self.label = label
        self.background_weight = background_weight
        self.weights = dict(weights)

    def forward(
        self, keypoint_BKDHW: Tensor, scores: PoseScores, regions: Regions, normalizers: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`loss_score`, `loss_offset`, and `loss_quality` where there are qualities; weighted scalars.

        Args:
            keypoint_BKDHW: displacements from cells to keypoints.
            scores: of the cells.
            regions: of the persons.
            normalizers: `cells` (N_pos) and `coordinates` of the whole batch.
        """
        error_BGNKD = regions.at_cells(keypoint_BKDHW) - displacement_targets(regions)
        # A scalar takes the type of the normalizer, float64, unless that is brought to its own.
        num_cells = normalizers["cells"].clamp(min=1).to(error_BGNKD)
        num_coordinates = (normalizers["coordinates"] + 1e-4).to(error_BGNKD)
        counts_BGNK1 = (regions.is_owned_BGN[..., None] & regions.labeled_BGK[:, :, None])[..., None]
        distance_BGNKD = F.smooth_l1_loss(error_BGNKD, torch.zeros_like(error_BGNKD), reduction="none")
        oks_BGN = object_keypoint_similarity(error_BGNKD.detach(), regions, self.sigma_K)

        label_BHW, is_foreground_BHW = self.score_labels(oks_BGN, regions)
        weight_BHW = torch.where(is_foreground_BHW, 1.0, self.background_weight) * regions.is_supervised_BHW
        losses = {
            "loss_score": (weight_BHW * (scores.score_BHW - label_BHW).square()).sum() / num_cells,
            "loss_offset": (distance_BGNKD * counts_BGNK1).sum() / num_coordinates,
        }
        if scores.quality_BHW is not None:
            error_BGN = (regions.at_cells(scores.quality_BHW) - oks_BGN) * regions.is_scored_BGN
            losses["loss_quality"] = error_BGN.square().sum() / num_cells
        return {name: self.weights[name] * loss for name, loss in losses.items()}

    def score_labels(self, oks_BGN: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """What scores should be (B, H, W), and where they count in full, (B, H, W)."""
        if self.label == "gaussian":
            label_BHW, is_foreground_BHW = gaussian_labels(regions)
            return label_BHW.to(oks_BGN), is_foreground_BHW
        is_owned_BHW = on_map(regions.is_owned_BGN.to(oks_BGN), regions)
        label_BHW = is_owned_BHW if self.label == "discrete" else on_map(oks_BGN * regions.is_owned_BGN, regions)
        return label_BHW, is_owned_BHW > 0


def displacement_targets(regions: Regions) -> Tensor:
    """From every candidate cell to the keypoints of its person, (B, G, N, K, D); 0 where not labeled."""
    target_BGNKD = regions.keypoints_BGKD[:, :, None] - regions.position_BGND[..., None, :]
    return torch.where(regions.labeled_BGK[:, :, None, :, None], target_BGNKD, 0.0)


def object_keypoint_similarity(error_BGNKD: Tensor, regions: Regions, sigma_K: Tensor) -> Tensor:
    """OKS of the pose of every candidate cell with its person, (B, G, N), as COCO computes it (eq. 1).

    Args:
        error_BGNKD: from the annotated to the predicted keypoints, in cells.
        regions: area and labeled keypoints are theirs.
        sigma_K: of the skeleton.
    """
    scale_BGK = 2 * regions.area_BG[..., None].clamp(min=torch.finfo(torch.float32).tiny) * (2 * sigma_K).square()
    similarity_BGNK = torch.exp(-error_BGNKD.square().sum(-1) / scale_BGK[:, :, None])
    labeled_BG1K = regions.labeled_BGK[:, :, None]
    return (similarity_BGNK * labeled_BG1K).sum(-1) / labeled_BG1K.sum(-1).clamp(min=1)


def on_map(value_BGN: Tensor, regions: Regions) -> Tensor:
    """The greatest value of the candidates at every cell, at least 0, (B, H, W)."""
    map_BHW = regions.is_supervised_BHW
    zero_BM = torch.zeros_like(map_BHW, dtype=value_BGN.dtype).flatten(1)
    return zero_BM.scatter_reduce(1, regions.cell_BGN.flatten(1), value_BGN.flatten(1), "amax").view(map_BHW.shape)
