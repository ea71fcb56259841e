"""The position of a cell of a feature map as a vector of sines and cosines."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """The fixed encoding of image positions that DETR-like transformers add to queries and keys.

    The first half of the channels encodes y, the second x: sine and cosine in turn, with geometrically growing
    wavelengths. The extent of the map without padding is 2π, whatever its size.

    Args:
        dim: channels C; a multiple of 4.
        temperature: ratio of the longest wavelength to the shortest.
    """

    def __init__(self, dim: int, temperature: float = 10000.0) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"A sine position encoding needs a multiple of 4 channels, not {dim}.")
        self.dim = dim
        self.temperature = temperature

    def forward(self, is_image_BHW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The encoding (B, H, W, C) of every cell, in float32 at least.

        Args:
            is_image_BHW: True where a cell belongs to the image, False where to padding, which lies to the right and
                below. Padding has the position of the last cell before it.
            dtype: of the result.
        """
        valid_BHW = is_image_BHW.to(torch.promote_types(dtype, torch.float32))
        angles = []
        for axis in (1, 2):
            count_BHW = valid_BHW.cumsum(axis)
            total_BHW = count_BHW.narrow(axis, -1, 1)
            angles.append(count_BHW / (total_BHW + 1e-6) * (2 * math.pi))
        pairs = self.dim // 4
        frequency_C = self.temperature ** (-torch.arange(pairs, device=valid_BHW.device).to(valid_BHW) / pairs)
        phase_BHWAC = torch.stack(angles, dim=-1)[..., None] * frequency_C
        return torch.stack([phase_BHWAC.sin(), phase_BHWAC.cos()], dim=-1).flatten(-3)
