"""What SHaRPose learns from: heat maps of both stages, and how good the coarse one is (Sec. 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from querypose.layers import at_least_float32, full_precision
from querypose.modeling.sharpose.quality import pose_similarity

QUALITY_DISTANCES: Mapping[str, Callable[[Tensor], Tensor]] = {"squared": Tensor.square, "norm": Tensor.abs}
"""Of a predicted quality from the measured one: squared in the authors' code, the L2 norm of a number in eq. 11."""


@dataclass(frozen=True)
class HeatmapTargets:
    """What the heat maps of B images should be.

    Attributes:
        heatmap_BKHW: zeros where not valid.
        valid_BK: keypoints that are annotated and touch the heat map.
        aspect: width over height of the crops.
    """

    heatmap_BKHW: Tensor
    valid_BK: Tensor
    aspect: float


class HeatmapCriterion(nn.Module):
    """Squared errors of heat maps, and the error of the predicted quality.

    Args:
        sigmas: the K falloffs of the skeleton's object keypoint similarity.
        quality_weight: of the quality term (lambda of eq. 9).
        quality_distance: a name in QUALITY_DISTANCES.
        swapped_axes: measures the coarse pose as the authors' code does, see `pose_similarity`.
    """

    sigmas: Tensor

    def __init__(
        self,
        *,
        sigmas: Tensor,
        quality_weight: float = 0.03,
        quality_distance: str = "squared",
        swapped_axes: bool = False,
    ) -> None:
        super().__init__()
        self.quality_weight = quality_weight
        self.quality_distance = QUALITY_DISTANCES[quality_distance]
        self.swapped_axes = swapped_axes
        self.register_buffer("sigmas", sigmas, persistent=False)

    def forward(
        self,
        heatmaps: list[Tensor],
        quality_B: Tensor | None,
        targets: HeatmapTargets,
        *,
        num_crops: Tensor,
        num_labelled: Tensor,
        trains_quality: bool,
    ) -> dict[str, Tensor]:
        """The weighted losses, scalars.

        Args:
            heatmaps: (B, K, H, W) of each stage, the coarse one first.
            quality_B: predicted quality of the coarse poses, if there is a predictor.
            targets: what the heat maps should be.
            num_crops: of the whole batch, averaged over the processes.
            num_labelled: of these, the crops with a valid keypoint.
            trains_quality: whether the quality term counts already; else it is zero, and so is its gradient.

        Returns:
            `loss_heatmap` of the last stage, `loss_heatmap_0` of the one before it; `loss_quality`.
        """
        num_crops, num_labelled = num_crops.clamp(min=1).to(targets.heatmap_BKHW), num_labelled.clamp(min=1)
        with full_precision(targets.heatmap_BKHW):
            names = ["loss_heatmap"] if len(heatmaps) == 1 else ["loss_heatmap_0", "loss_heatmap"]
            losses = {
                name: (
                    (at_least_float32(heatmap_BKHW) - targets.heatmap_BKHW).square().mean((2, 3)) * targets.valid_BK
                ).sum()
                / (num_crops * targets.valid_BK.shape[1])
                for name, heatmap_BKHW in zip(names, heatmaps, strict=True)
            }
            if quality_B is not None:
                measured_B = pose_similarity(
                    heatmaps[0],
                    targets.heatmap_BKHW,
                    targets.valid_BK,
                    self.sigmas,
                    targets.aspect,
                    swapped_axes=self.swapped_axes,
                )
                error_B = self.quality_distance(at_least_float32(quality_B) - measured_B) * targets.valid_BK.any(dim=1)
                weight = self.quality_weight if trains_quality else 0.0
                losses["loss_quality"] = weight * error_B.sum() / num_labelled.to(error_B)
        return losses
