"""torchvision's aligned RoIAlign as weighted sums of whole cells, for memory in channels_last."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def roi_align_channels_last(
    feature_BCHW: Tensor, rois_R5: Tensor, resolution: int, spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """`torchvision.ops.roi_align(…, aligned=True)` on the CPU, on all cores and from memory in channels_last.

    A cell of a region is the weighted sum of the (2 · sampling_ratio)² cells of the feature that its bilinear samples
    touch; an embedding bag adds them up, all channels at once. A region that is not finite reads zeros.

    Args:
        feature_BCHW: best in channels_last; any other layout is copied at every call.
        rois_R5: image index, then corners in pixels.
        resolution: side of a region, in cells.
        spatial_scale: cells per pixel.
        sampling_ratio: samples per cell and axis.

    Returns:
        (R, C, resolution, resolution) in channels_last.
    """
    height, width = feature_BCHW.shape[-2:]
    corners_R4 = rois_R5[:, 1:] * spatial_scale - 0.5
    column_RNT, weight_x_RNT = _taps(corners_R4[:, 0], corners_R4[:, 2], width, resolution, sampling_ratio)
    row_RNT, weight_y_RNT = _taps(corners_R4[:, 1], corners_R4[:, 3], height, resolution, sampling_ratio)
    row_RNT = row_RNT + rois_R5[:, 0].long()[:, None, None] * height
    cell_RNNTT = row_RNT[:, :, None, :, None] * width + column_RNT[:, None, :, None, :]
    weight_RNNTT = weight_y_RNT[:, :, None, :, None] * weight_x_RNT[:, None, :, None, :]
    region = F.embedding_bag(
        cell_RNNTT.flatten(0, 2).flatten(1),
        feature_BCHW.permute(0, 2, 3, 1).flatten(0, 2),
        per_sample_weights=weight_RNNTT.flatten(0, 2).flatten(1),
        mode="sum",
    )
    return region.view(-1, resolution, resolution, feature_BCHW.shape[1]).permute(0, 3, 1, 2)


def _taps(
    start_R: Tensor, end_R: Tensor, num_cells: int, resolution: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Along one axis: the cells that each of the N = `resolution` bins reads, (R, N, 2 · sampling_ratio), and weights.

    Args:
        start_R: where the regions begin, in cells, 0 at the center of the first.
        end_R: where they end.
        num_cells: of the feature.
        resolution: bins of a region.
        sampling_ratio: samples per bin.
    """
    samples = (torch.arange(resolution * sampling_ratio).to(start_R) + 0.5) / sampling_ratio
    position = start_R[:, None] + samples * ((end_R - start_R) / resolution)[:, None]
    inside = (position >= -1) & (position <= num_cells)
    # Beyond the center of the first or last cell there is no second cell to interpolate with.
    position = torch.where(inside, position, 0).clamp(0, num_cells - 1)
    low = position.floor()
    share_of_high = position - low
    cells = torch.stack([low, (low + 1).clamp(max=num_cells - 1)], dim=-1).long()
    weights = torch.stack([1 - share_of_high, share_of_high], dim=-1) * inside[..., None] / sampling_ratio
    return cells.view(-1, resolution, 2 * sampling_ratio), weights.view(-1, resolution, 2 * sampling_ratio)
