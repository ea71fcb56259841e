"""Heat maps of keypoints: from tokens, from annotations, and back to positions (UDP with DARK's refinement).

Positions on a heat map are indices of cells: the center of the first cell is 0, that of the last one is W - 1. The
first and the last cell lie on the first and the last pixel of the image (unbiased data processing), so that indices of
cells and pixels differ by the factor (image - 1) / (heat map - 1), and by no offset.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from querypose.layers import at_least_float32


class HeatmapHead(nn.Sequential):
    """From keypoint tokens to heat maps, (B, K, C) to (B, K, H, W) (eq. 3).

    One linear layer where a token has at least a fourth as many values as the heat map, two with GELU otherwise.

    Args:
        dim: width C of the tokens.
        size: height and width of the heat maps, in cells.
    """

    def __init__(self, dim: int, size: tuple[int, int]) -> None:
        num_cells = size[0] * size[1]
        layers: list[nn.Module] = [nn.LayerNorm(dim)]
        if dim < num_cells // 4:
            hidden = num_cells // 2
            layers += [nn.Linear(dim, hidden), nn.GELU(), nn.LayerNorm(hidden)]
            dim = hidden
        super().__init__(*layers, nn.Linear(dim, num_cells), nn.Unflatten(-1, size))
        self.size = size


def gaussian_heatmaps(
    keypoint_BKD: Tensor, labelled_BK: Tensor, size: tuple[int, int], sigma: float
) -> tuple[Tensor, Tensor]:
    """A Gaussian about every keypoint, of height 1 and cut off at 3 sigma from the nearest cell.

    Args:
        keypoint_BKD: x and y, in cells; arbitrary where not labelled.
        labelled_BK: which keypoints are annotated.
        size: height and width of the heat maps.
        sigma: in cells.

    Returns:
        heat maps (B, K, H, W), zeros where the keypoint is not valid, and which are valid (B, K): those annotated whose
        Gaussian touches the map.
    """
    valid_BK = labelled_BK & touches_heatmap(keypoint_BKD, size, sigma)
    height, width = size
    factors = []
    for keypoint_BK, cells in ((keypoint_BKD[..., 1], height), (keypoint_BKD[..., 0], width)):
        cell = torch.arange(cells, device=keypoint_BKD.device, dtype=keypoint_BKD.dtype)
        distance = cell - keypoint_BK[..., None]
        inside = (cell - _nearest_cell(keypoint_BK)[..., None]).abs() <= 3 * sigma
        factors.append(torch.exp(-distance.square() / (2 * sigma**2)) * inside)
    rows_BKH, columns_BKW = factors
    heatmap_BKHW = rows_BKH[..., :, None] * columns_BKW[..., None, :]
    # A keypoint without a label may be anywhere, even at NaN.
    return torch.where(valid_BK[..., None, None], heatmap_BKHW, 0.0), valid_BK


def touches_heatmap(keypoint_BKD: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Whether the Gaussian of each keypoint reaches the heat map; arguments as of `gaussian_heatmaps`."""
    nearest_BKD = _nearest_cell(keypoint_BKD)
    end_D = nearest_BKD.new_tensor([size[1], size[0]])
    # As the authors' code: one that ends on the cell before the first counts, and asks for a heat map of zeros.
    return ((nearest_BKD + 3 * sigma >= -1) & (nearest_BKD - 3 * sigma < end_D)).all(dim=-1)


def _nearest_cell(keypoint: Tensor) -> Tensor:
    # Towards zero, as in the authors' code: half a cell wider about 0 than rounding.
    return (keypoint + 0.5).trunc()


def heatmap_peaks(heatmap_BKHW: Tensor) -> tuple[Tensor, Tensor]:
    """Cell of the greatest value, x and y (B, K, 2), (-1, -1) where that is not positive; and that value (B, K)."""
    value_BK, index_BK = heatmap_BKHW.flatten(2).max(dim=-1)
    width = heatmap_BKHW.shape[-1]
    peak_BKD = torch.stack([index_BK % width, index_BK // width], dim=-1).to(heatmap_BKHW.dtype)
    return torch.where(value_BK[..., None] > 0, peak_BKD, -1.0), value_BK


def decode_heatmaps(heatmap_BKHW: Tensor, kernel_size: int = 11) -> tuple[Tensor, Tensor]:
    """Positions of keypoints between the cells: one Newton step on the logarithm of the blurred heat map.

    Args:
        heatmap_BKHW: one heat map a keypoint.
        kernel_size: of the Gaussian blur, in cells; odd.

    Returns:
        x and y (B, K, 2), in cells, and the greatest value of each heat map (B, K).
    """
    heatmap_BKHW = at_least_float32(heatmap_BKHW)
    width = heatmap_BKHW.shape[-1]
    value_BK, index_BK = heatmap_BKHW.flatten(2).max(dim=-1)
    peak_BKD = torch.stack([index_BK % width, index_BK // width], dim=-1)
    log_BKHW = gaussian_blur(heatmap_BKHW, kernel_size).clamp(1e-3, 50.0).log()
    padded_BKT = F.pad(log_BKHW, (1, 1, 1, 1), mode="replicate").flatten(2)
    # The 3x3 cells about the peak; the padded map is two cells wider, and one cell further.
    offset_9 = torch.tensor([dy * (width + 2) + dx for dy in range(3) for dx in range(3)], device=index_BK.device)
    cell_BK9 = (peak_BKD[..., 1] * (width + 2) + peak_BKD[..., 0])[..., None] + offset_9
    nw, n, _, w, c, e, _, s, se = padded_BKT.gather(2, cell_BK9).unbind(-1)
    gradient_x, gradient_y = (e - w) / 2, (s - n) / 2
    epsilon = torch.finfo(torch.float32).eps
    hessian_xx, hessian_yy = e - 2 * c + w + epsilon, s - 2 * c + n + epsilon
    hessian_xy = (se - e - s + 2 * c - w - n + nw) / 2
    determinant = hessian_xx * hessian_yy - hessian_xy.square()
    step_x = (hessian_yy * gradient_x - hessian_xy * gradient_y) / determinant
    step_y = (hessian_xx * gradient_y - hessian_xy * gradient_x) / determinant
    # Deviates: bounded. On a slope without a peak the authors' step leads anywhere.
    bound = kernel_size // 2
    step_BKD = torch.stack([step_x, step_y], dim=-1).nan_to_num().clamp(-bound, bound)
    return peak_BKD - step_BKD, value_BK


def gaussian_blur(heatmap_BKHW: Tensor, kernel_size: int) -> Tensor:
    """Blurs with a Gaussian whose sigma follows from its size as in OpenCV; the borders are mirrored."""
    sigma = 0.3 * ((kernel_size - 1) / 2 - 1) + 0.8
    radius = kernel_size // 2
    tap = torch.arange(-radius, radius + 1, dtype=heatmap_BKHW.dtype, device=heatmap_BKHW.device)
    tap = torch.exp(-tap.square() / (2 * sigma**2))
    tap = tap / tap.sum()
    padded = F.pad(heatmap_BKHW, (radius, radius, radius, radius), mode="reflect").flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(padded, tap[None, None, :, None]), tap[None, None, None, :])
    return blurred.view_as(heatmap_BKHW)


def flip_heatmaps(heatmap_BKHW: Tensor, flip_indices: Sequence[int]) -> Tensor:
    """The heat maps of mirrored images as those of the images: mirrored back, left and right keypoints exchanged."""
    return heatmap_BKHW[:, list(flip_indices)].flip(-1)
