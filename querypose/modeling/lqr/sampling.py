"""Reading of a map: bilinear at displaced positions, and at chosen cells."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cell_positions(height: int, width: int, like: Tensor) -> Tensor:
    """The position of every cell, (D, height, width), with the type and on the device of `like`."""
    y_H, x_W = (torch.arange(length, device=like.device, dtype=like.dtype) for length in (height, width))
    return torch.stack([x_W.expand(height, width), y_H[:, None].expand(height, width)])


def reading_grid(displacement_RDHW: Tensor) -> Tensor:
    """The positions that lie `displacement_RDHW` cells from every cell, (R, H, W, D), as `read` takes them.

    -1 and 1 are the outermost cells of the map.
    """
    height, width = displacement_RDHW.shape[-2:]
    cell_DHW = cell_positions(height, width, displacement_RDHW)
    last_D11 = cell_DHW[:, -1:, -1:].clamp(min=1)
    return ((displacement_RDHW + cell_DHW) * (2 / last_D11) - 1).permute(0, 2, 3, 1)


def read(map_RCHW: Tensor, grid_RMWD: Tensor) -> Tensor:
    """Bilinear values of a map, (R, C, M, W), at positions of `reading_grid`; those outside clamp to the border."""
    return F.grid_sample(map_RCHW, grid_RMWD, mode="bilinear", padding_mode="border", align_corners=True)


def read_cells(values: Tensor, cell_BM: Tensor) -> Tensor:
    """What maps (B, …, H, W) have at M cells of theirs, given as places in the flattened map, (B, M, …)."""
    index = cell_BM.view(cell_BM.shape[0], *[1] * (values.dim() - 3), -1).expand(*values.shape[:-2], -1)
    return values.flatten(-2).gather(-1, index).movedim(-1, 1)
