"""Region features: RoIAlign from one or several levels of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from querypose.layers.precision import at_least_float32, full_precision
from querypose.layers.roi_align import roi_align_channels_last

# A region of 224 pixels belongs to level 4 (stride 16), as in the paper that introduced FPN.
CANONICAL_SIZE = 224
CANONICAL_LEVEL = 4
# In pixels; a box with all corners here is far outside of any image, so that its region is zero.
OUTSIDE = -1e5


def pooling_layout(feature_BCHW: Tensor) -> Tensor:
    """A feature in the precision and memory layout that `RegionPooler` reads, so that many poolings convert it once."""
    layout = torch.channels_last if feature_BCHW.device.type == "cpu" else torch.contiguous_format
    return at_least_float32(feature_BCHW).contiguous(memory_format=layout)


class RegionPooler(nn.Module):
    """Aligned RoIAlign; a region reads the one level that fits its size.

    Args:
        strides: of the levels, in pixels, powers of two in increasing order.
        resolution: side of a region, in cells.
        sampling_ratio: samples per cell and axis.
    """

    def __init__(self, strides: Sequence[int], resolution: int, sampling_ratio: int = 2) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio

    def forward(self, features: Sequence[Tensor], boxes_R4: Tensor, image_R: Tensor) -> Tensor:
        """Pools R regions.

        Args:
            features: one (B, C, H, W) tensor a level; where they are read often, in their `pooling_layout`.
            boxes_R4: corners in the frame of the padded images, pixels; they may reach out of them.
                A box that is not finite reads zeros.
            image_R: which of the B images each box is of.

        Returns:
            (R, C, resolution, resolution).
        """
        with full_precision(boxes_R4):
            # Float32 even in a float64 model: detectron2's pooler rounds its boxes to it, and results must be equal.
            boxes_R4 = boxes_R4.float().to(at_least_float32(features[0]).dtype)
            # RoIAlign turns NaN into a memory address, and the process would crash without a message.
            boxes_R4 = torch.where(boxes_R4.isfinite().all(dim=1, keepdim=True), boxes_R4, OUTSIDE)
            rois_R5 = torch.cat([image_R[:, None].to(boxes_R4), boxes_R4], dim=1)
            if len(self.strides) == 1:
                return self._pool(0, features[0], rois_R5)
            level_R = self._levels(boxes_R4)
            if boxes_R4.is_cuda:
                return self._pool_masked(features, rois_R5, level_R)
            return self._pool_indexed(features, rois_R5, level_R)

    def _pool(self, level: int, feature: Tensor, rois_R5: Tensor) -> Tensor:
        feature, scale = at_least_float32(feature), 1.0 / self.strides[level]
        if feature.device.type == "cpu" and not torch.compiler.is_exporting():
            # torchvision's runs on one core.
            return roi_align_channels_last(feature, rois_R5, self.resolution, scale, self.sampling_ratio)
        return roi_align(feature, rois_R5, self.resolution, scale, self.sampling_ratio, aligned=True)

    def _levels(self, boxes_R4: Tensor) -> Tensor:
        area_R = (boxes_R4[:, 2:] - boxes_R4[:, :2]).prod(-1).clamp(min=0)
        level_R = torch.floor(CANONICAL_LEVEL + torch.log2(area_R.sqrt() / CANONICAL_SIZE + 1e-8))
        lowest = self.strides[0].bit_length() - 1
        return (level_R - lowest).clamp(0, len(self.strides) - 1)

    def _pool_masked(self, features: Sequence[Tensor], rois_R5: Tensor, level_R: Tensor) -> Tensor:
        """Pools every region from every level; at levels that are not its own, from far outside, which gives zeros.

        On a GPU the superfluous samples cost less than a transfer of the levels to the host.
        """
        pooled = []
        for level, feature in enumerate(features):
            boxes_R4 = torch.where((level_R == level)[:, None], rois_R5[:, 1:], OUTSIDE)
            pooled.append(self._pool(level, feature, torch.cat([rois_R5[:, :1], boxes_R4], dim=1)))
        return torch.stack(pooled).sum(0)

    def _pool_indexed(self, features: Sequence[Tensor], rois_R5: Tensor, level_R: Tensor) -> Tensor:
        indices = [torch.nonzero(level_R == level).squeeze(1) for level in range(len(self.strides))]
        pooled = [self._pool(level, features[level], rois_R5[index]) for level, index in enumerate(indices)]
        return torch.cat(pooled)[torch.cat(indices).argsort()]
