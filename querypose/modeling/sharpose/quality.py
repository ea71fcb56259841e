"""How good a coarse pose is: predicted from the quality token, and measured for training (Sec. 3.2, eq. 4 and 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from querypose.modeling.sharpose.heatmaps import heatmap_peaks

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "sigmoid": nn.Sigmoid, "none": nn.Identity}
"""Of the predicted quality."""


class QualityPredictor(nn.Module):
    """From quality tokens to the object keypoint similarity that the coarse pose is thought to have (eq. 4).

    Args:
        dim: width C of the tokens.
        activation: of the output, a name in ACTIVATIONS; `gelu`, unusual as it is, is what the authors' code trains.

    Attributes:
        is_trained: whether it has begun to learn, which it does late: before that nobody should go by it.
    """

    is_trained: Tensor

    def __init__(self, dim: int, activation: str = "gelu") -> None:
        super().__init__()
        self.register_buffer("is_trained", torch.tensor(False))
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1), ACTIVATIONS[activation]()
        )

    def forward(self, token_BC: Tensor) -> Tensor:
        """Qualities (B)."""
        return self.mlp(self.norm(token_BC)).squeeze(-1)


@torch.no_grad()
def pose_similarity(
    heatmap_BKHW: Tensor,
    target_BKHW: Tensor,
    valid_BK: Tensor,
    sigmas: Tensor,
    aspect: float,
    *,
    swapped_axes: bool = False,
) -> Tensor:
    """Object keypoint similarity (B) between the peaks of heat maps and of their targets; 0 where no keypoint is valid.

    The scale of the person is the area of the whole crop, so that the size of the crop in the image cancels out: far
    more than COCO's area of the person, so that similarities are near 1.

    Args:
        heatmap_BKHW: predicted.
        target_BKHW: what they should be.
        valid_BK: keypoints that count.
        sigmas: the K falloffs of the skeleton.
        aspect: width over height of the crop.
        swapped_axes: divides x by the height and y by the width of the heat maps, as the authors' code does.
    """
    offset_BKD = heatmap_peaks(heatmap_BKHW)[0] - heatmap_peaks(target_BKHW)[0]
    height, width = heatmap_BKHW.shape[-2:]
    if swapped_axes:
        height, width = width, height
    # A crop of area 1 is so wide and so high.
    crop_D = offset_BKD.new_tensor([aspect**0.5 / width, aspect**-0.5 / height])
    exponent_BK = (offset_BKD * crop_D).square().sum(-1) / (2 * (2 * sigmas.to(offset_BKD)).square())
    valid_BK = valid_BK.to(exponent_BK)
    return ((-exponent_BK).exp() * valid_BK).sum(-1) / valid_BK.sum(-1).clamp(min=1)
